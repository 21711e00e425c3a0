"""The serve script: its flags, its one-line errors, and a run from a checkpoint to a signal."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import sys
import threading

import jax
import numpy as np
import pytest
import tyro

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.policies import realman_policy
from openpi.policies import recorder
from openpi.serving import replay_policy
from openpi.serving.websocket_policy_server import ServerOptions
from openpi.shared import cli
from openpi.shared import compile_cache
from openpi.shared import normalize
from openpi.shared.errors import UserError
from openpi.training import config as _config
from openpi.training.configs import robot_data_config
from openpi.training.misc import realman_config
from openpi_client.websocket_client_policy import WebsocketClientPolicy

ROOT = pathlib.Path(__file__).parents[3]
CHECKPOINT = ROOT / "tests" / "golden" / "pi0_checkpoint"
HOST = "127.0.0.1"
WAIT_S = 60.0
JAX_SETTINGS = {}


def _load_script():
    spec = importlib.util.spec_from_file_location("serve_policy", ROOT / "third_party/openpi/scripts/serve_policy.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


serve_policy = _load_script()


class NoiseModel(_model.BaseModel):
    """Stands in for pi0, whose compilation is not what is tested here."""

    def compute_loss(self, rng, observation, actions, *, train=False):
        raise AssertionError("not part of inference")

    def sample_actions(self, rng, observation, **kwargs):
        return jax.random.normal(rng, (1, self.action_horizon, self.action_dim)) + observation.state[:, None, :]


class NoiseConfig(pi0_config.Pi0Config):
    def load(self, params, *, remove_extra_params=True):
        return NoiseModel(self)


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch):
    """Serving sets up JAX for its process; other tests must not notice."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(jax.config, "update", lambda name, value: JAX_SETTINGS.__setitem__(name, value))
    JAX_SETTINGS.clear()


@pytest.fixture
def tiny_config(monkeypatch):
    """A registered config that fits the golden checkpoint."""
    fields = json.loads((ROOT / "tests/golden/pi0.json").read_text())["config"]
    size = gemma_config.Config(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512)
    sizes = {"paligemma_variant": size, "action_expert_variant": size, "vision_variant": "mu/16"}
    config = _config.TrainConfig(
        name="tiny_realman",
        model=NoiseConfig(**fields | sizes),
        data=realman_config.LeRobotRealmanDataConfig(repo_id="realman/demo"),
        policy_metadata={"robot": "realman_rm65_dual"},
    )
    monkeypatch.setitem(_config.all_configs(), config.name, config)
    return config.name


def _parse(*args):
    return tyro.cli(serve_policy.Args, args=args)


def _free_port():
    with socket.create_server((HOST, 0)) as probe:
        return probe.getsockname()[1]


def test_the_flags_are_those_of_the_original():
    default = _parse()
    assert (default.env.name, default.port, default.default_prompt, default.record) == ("ALOHA_SIM", 8000, None, False)
    assert isinstance(default.policy, serve_policy.Default)
    args = _parse(
        *("--env", "DROID", "--default_prompt", "wave", "--port", "9000", "--record"),
        *("policy:checkpoint", "--policy.config", "pi0_realman", "--policy.dir", "x/1"),
    )
    assert args == serve_policy.Args(
        env=serve_policy.EnvMode.DROID,
        default_prompt="wave",
        port=9000,
        record=True,
        policy=serve_policy.Checkpoint(config="pi0_realman", dir="x/1"),
    )
    assert _parse("--no-record", "policy:default") == default


def test_only_this_machine_is_served_unless_the_host_flag_says_more():
    assert _parse().host == HOST
    assert _parse("--host", "0.0.0.0").host == "0.0.0.0"


@pytest.mark.parametrize("args", [["policy:checkpoint", "--policy.config", "x"], ["--env", "droid"], ["--port", "x"]])
def test_wrong_use_exits_with_status_2(args, capsys):
    with pytest.raises(SystemExit) as failure:
        _parse(*args)
    assert failure.value.code == 2
    assert capsys.readouterr().err


def test_every_environment_has_a_released_checkpoint():
    assert set(serve_policy.DEFAULT_CHECKPOINT) == set(serve_policy.EnvMode)
    assert serve_policy.DEFAULT_CHECKPOINT[serve_policy.EnvMode.DROID] == serve_policy.Checkpoint(
        config="pi05_droid", dir="gs://openpi-assets/checkpoints/pi05_droid"
    )


def _serve(*flags, config, directory, port):
    serve_policy.main(
        _parse(
            "--port", str(port), *flags, "policy:checkpoint", "--policy.config", config, "--policy.dir", str(directory)
        )
    )


def test_errors_are_one_line_and_status_1(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "setup_logging", lambda: None)
    (tmp_path / "3").mkdir()
    with socket.create_server((HOST, 0)) as taken:
        cases = {
            "config 'tiny_realmen' not found. Did you mean 'tiny_realman'?": ("tiny_realmen", CHECKPOINT, 0),
            "'params/' not found (found '3')": (tiny_config, tmp_path, 0),
            "no such file or folder": (tiny_config, tmp_path / "absent", 0),
            f"port {taken.getsockname()[1]} of 127.0.0.1 is taken": (tiny_config, CHECKPOINT, taken.getsockname()[1]),
        }
        for message, (config, directory, port) in cases.items():
            with pytest.raises(SystemExit) as failure:
                cli.run(lambda _: _serve(config=config, directory=directory, port=port), lambda: None)  # noqa: B023
            assert failure.value.code == 1
            stderr = capsys.readouterr().err
            assert message in stderr
            assert len(stderr.splitlines()) == 1


def test_a_checkpoint_is_served_until_a_signal(tiny_config, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    port, seen = _free_port(), {}

    def drive():
        obs = {key: value for key, value in realman_policy.make_realman_example().items() if key != "prompt"}
        with contextlib.ExitStack() as stack:
            stack.callback(os.kill, os.getpid(), signal.SIGTERM)
            client = stack.enter_context(WebsocketClientPolicy(HOST, port, connect_timeout_s=WAIT_S))
            seen["metadata"] = client.get_server_metadata()
            seen["actions"] = client.infer(obs)["actions"]

    client = threading.Thread(target=drive)
    client.start()
    _serve("--default-prompt", "wave", "--record", config=tiny_config, directory=CHECKPOINT, port=port)
    client.join(WAIT_S)
    assert seen["metadata"]["config"] == "tiny_realman"
    assert seen["metadata"]["step"] == 7
    assert seen["actions"].shape == (10, 14)
    (ready,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("ready at")]
    for part in (f"ws://127.0.0.1:{port}", "'tiny_realman'", "pi0_checkpoint/7", "'wave' by default", "warm-up"):
        assert part in ready
    # The client's request is recorded, the warm-up is not; nothing else is written.
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "policy_records",
        "policy_records/metadata.json",
        "policy_records/step_0.npz",
    }
    (record,) = recorder.find_records("policy_records")
    np.testing.assert_array_equal(recorder.read_record(record).outputs["actions"], seen["actions"])


@pytest.mark.parametrize(("num_stats", "size"), [(7, 7), (10, 10), (16, 8)])
def test_a_state_that_the_robot_leaves_open_has_the_size_of_the_training(
    tiny_config, tmp_path, monkeypatch, num_stats, size
):
    """16 is the model's own width: statistics of padded numbers, as some released checkpoints have."""
    config = _config.get_config(tiny_config)
    libero = robot_data_config.LeRobotLiberoDataConfig(repo_id="realman/demo")
    monkeypatch.setitem(_config.all_configs(), tiny_config, dataclasses.replace(config, data=libero))
    step_dir = shutil.copytree(CHECKPOINT / "7", tmp_path / "run/7")
    zeros, ones = np.zeros(num_stats), np.ones(num_stats)
    stats = dict.fromkeys(("state", "actions"), normalize.NormStats(zeros, ones, -ones, ones))
    normalize.save(step_dir / "assets/realman/demo", stats)
    checkpoint = serve_policy.Checkpoint(config=tiny_config, dir=str(step_dir))
    served = serve_policy.load_checkpoint(serve_policy.Args(policy=checkpoint))
    assert served.example["observation/state"].shape == (size,)
    assert served.policy.infer(served.example)["actions"].shape == (10, 7)


def test_the_settings_of_a_server_reach_it(tiny_config, monkeypatch, tmp_path):
    servers = []
    monkeypatch.setattr(
        serve_policy.WebsocketPolicyServer, "serve_forever", lambda self, on_ready: servers.append(self)
    )
    # This test is for any release of JAX. Another test covers which of them keep programs.
    monkeypatch.setattr(compile_cache, "_FIRST_SAFE_ON_CPU", (0, 0))
    keys = tmp_path / "keys"
    keys.write_text("a key of some length\n")
    flags = ("--api-key-file", str(keys), "--max-message-mb", "2", "--max-batch", "4", "--num-steps", "5")
    _serve(*flags, "--compile-cache", str(tmp_path), config=tiny_config, directory=CHECKPOINT, port=0)
    assert servers[0].options == ServerOptions(
        api_keys=("a key of some length",), max_message_bytes=2 * 2**20, max_batch=4
    )
    assert {"jax_compilation_cache_dir": str(tmp_path)} == JAX_SETTINGS


def test_memory_is_taken_as_needed_unless_a_share_is_given(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    serve_policy._set_up_jax(_parse())
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    serve_policy._set_up_jax(_parse("--device-memory", "0.5"))
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


def test_numbers_out_of_range_are_all_reported_together():
    message = r"--port: found 70000, expected 0 to 65535 \(.*\)\. --num-steps: found 0, expected 1 to 1000"
    with pytest.raises(UserError, match=message):
        serve_policy.main(_parse("--port", "70000", "--num-steps", "0"))


def test_integration_steps_of_a_model_without_any_are_refused():
    config = next(c for c in _config.all_configs().values() if c.model.model_type == _model.ModelType.PI0_FAST)
    with pytest.raises(UserError, match="--num-steps has no meaning"):
        _serve("--num-steps", "5", config=config.name, directory=CHECKPOINT, port=0)


def test_a_recorded_episode_is_served_without_a_model(tiny_config, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    port, seen = _free_port(), {}
    root = ROOT / "tests" / "golden" / "lerobot_v21_image"

    def drive():
        with contextlib.ExitStack() as stack:
            stack.callback(os.kill, os.getpid(), signal.SIGTERM)
            client = stack.enter_context(WebsocketClientPolicy(HOST, port, connect_timeout_s=WAIT_S))
            seen["metadata"] = client.get_server_metadata()
            seen["actions"] = client.infer(realman_policy.make_realman_example())["actions"]

    client = threading.Thread(target=drive)
    client.start()
    replay = ("policy:replay", "--policy.config", tiny_config, "--policy.episode", "1", "--policy.root", str(root))
    serve_policy.main(_parse("--port", str(port), *replay))
    client.join(WAIT_S)
    recorded = replay_policy.read_actions("golden", 1, root)
    steps = min(len(recorded), 10)
    np.testing.assert_array_equal(seen["actions"][:steps], recorded[:steps])
    assert "episode 1" in seen["metadata"]["replay"]
    assert seen["metadata"]["robot"] == "realman_rm65_dual"


def test_a_recorded_episode_of_the_other_arm_order_is_refused(tiny_config, tmp_path):
    root = shutil.copytree(ROOT / "tests/golden/lerobot_v21_image", tmp_path / "left_first")
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for key in ("observation.state", "action"):
        (names,) = info["features"][key]["names"]
        info["features"][key]["names"] = names[7:] + names[:7]
    path.write_text(json.dumps(info))
    replay = ("policy:replay", "--policy.config", tiny_config, "--policy.episode", "1", "--policy.root", str(root))
    with pytest.raises(UserError, match="put the left arm first, the config expects the right arm"):
        serve_policy.main(_parse("--port", "0", *replay))


def test_serving_the_whole_network_is_warned_of(tiny_config, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(serve_policy.WebsocketPolicyServer, "serve_forever", lambda self, on_ready: None)
    _serve("--host", "0.0.0.0", config=tiny_config, directory=CHECKPOINT, port=0)
    assert any("anyone who reaches this port" in record.getMessage() for record in caplog.records)
    caplog.clear()
    keys = tmp_path / "keys"
    keys.write_text("a key of some length\n")
    _serve("--host", "0.0.0.0", "--api-key-file", str(keys), config=tiny_config, directory=CHECKPOINT, port=0)
    assert not any("anyone who reaches this port" in record.getMessage() for record in caplog.records)
    _serve("--host", "localhost", config=tiny_config, directory=CHECKPOINT, port=0)
    assert not any("anyone who reaches this port" in record.getMessage() for record in caplog.records)


def test_a_machine_without_a_resolvable_name_can_serve(monkeypatch):
    def refuse(*args):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "gethostbyname", refuse)
    assert serve_policy._public_name("0.0.0.0") == socket.gethostname()
    assert serve_policy._public_name(HOST) == HOST


def test_a_missing_released_checkpoint_is_reported_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("OPENPI_OFFLINE", "1")
    monkeypatch.setitem(
        serve_policy.DEFAULT_CHECKPOINT,
        serve_policy.EnvMode.DROID,
        serve_policy.Checkpoint(config="pi05_realman", dir="gs://openpi-assets/checkpoints/pi05_droid"),
    )
    with pytest.raises(UserError, match=r"Put it at '.*pi05_droid'"):
        serve_policy.main(_parse("--env", "DROID", "--port", "0"))


@pytest.mark.parametrize("fps", [50, 30, 25.0])
def test_a_recording_is_replayed_at_its_own_rate(tiny_config, tmp_path, monkeypatch, set_rate, fps):
    config = dataclasses.replace(_config.get_config(tiny_config), policy_metadata=realman_config.policy_metadata(50))
    monkeypatch.setitem(_config.all_configs(), tiny_config, config)
    root = shutil.copytree(ROOT / "tests/golden/lerobot_v21_image", tmp_path / "data")
    set_rate(root, fps)
    replay = serve_policy.Replay(config=tiny_config, root=root)
    metadata = serve_policy.load_replay(serve_policy.Args(policy=replay), replay).metadata
    assert metadata["fps"] == fps
    assert metadata["dim_names"] == list(realman_policy.DIM_NAMES)


def test_a_place_for_records_is_tried_before_anything_is_loaded(monkeypatch):
    loaded = []
    monkeypatch.setattr(serve_policy, "load_checkpoint", loaded.append)
    monkeypatch.setattr(serve_policy, "_set_up_jax", lambda args: None)
    args = serve_policy.Args(host=HOST, port=0, record_dir=pathlib.Path("/proc/records"))
    with pytest.raises(
        UserError, match=r"^/proc/records: cannot be written \(.*\)\. Choose another folder with --record-dir$"
    ):
        serve_policy.main(args)
    assert loaded == []
