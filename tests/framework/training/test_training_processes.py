"""Several processes on loopback with several devices each: one process's losses, one stop, one checkpoint."""

import dataclasses
import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from openpi.models import gemma_config
from openpi.models import pi0_config
from openpi.shared import errors
from openpi.training import config as _config
from openpi.training.host import distributed
from openpi.training.run import train_loop

# An embedding table of 8 MiB, large enough to be split between devices.
SIZE = gemma_config.Config(width=32, depth=1, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=65536)
MODEL = pi0_config.Pi0Config(
    dtype="float32",
    vision_variant="mu/112",
    paligemma_variant=SIZE,
    action_expert_variant=SIZE,
    action_horizon=2,
    max_token_len=4,
)
STOP_AT = 2
TIMEOUT_S = 280

# Process 1 is asked to stop during step 2.
PROCESS = """
import json, os, pickle, signal, sys
config = pickle.load(open(sys.argv[1], "rb"))
from openpi.shared import compile_cache
from openpi.training.host import distributed
from openpi.training.run import train_loop
distributed.initialize(config)
compile_cache.enable(sys.argv[3])
add = train_loop.StepMeter.add
def add_and_ask(self, step, *args):
    if config.process_id == 1 and step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)
    add(self, step, *args)
train_loop.StepMeter.add = add_and_ask
summary = train_loop.train(config)
print(json.dumps([summary.num_steps, summary.stop_signal]))
"""


def config(folder: pathlib.Path, **changes):
    fields = {"model": MODEL, "num_train_steps": 6, "log_interval": 1, "batch_size": 4, "overwrite": False}
    debug = _config.get_config("debug")
    return dataclasses.replace(debug, **fields | {"checkpoint_base_dir": str(folder)} | changes)


def losses(run: pathlib.Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "train_log.jsonl").read_text().splitlines()]


def start(config: _config.TrainConfig, path: pathlib.Path, *, num_devices: int) -> subprocess.Popen[str]:
    """Start a separate process that reads its config from `path`."""
    flags = (
        f"--xla_force_host_platform_device_count={num_devices} --xla_backend_optimization_level=0"  # compiles faster
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(config))
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(path), str(STOP_AT), jax.config.jax_compilation_cache_dir or ""],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def results(processes: list[subprocess.Popen[str]]) -> list[tuple[int, int | None]]:
    """Wait for the processes and return the steps done and the signal received by each."""
    try:
        done = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * len(processes), [err[-3000:] for _, err in done]
    return [tuple(json.loads(out.splitlines()[-1])) for out, _ in done]


def free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def test_two_processes_train_as_one_and_stop_together_when_one_is_asked_to(tmp_path):
    shared = {"num_train_steps": 500, "fsdp_devices": 2, "coordinator_address": free_address(), "num_processes": 2}
    configs = [config(tmp_path, **shared, process_id=index) for index in range(2)]
    processes = [start(each, tmp_path / f"{each.process_id}.pickle", num_devices=2) for each in configs]
    first, second = results(processes)
    assert first == second
    num_steps, stop_signal = first
    assert stop_signal == signal.SIGTERM
    assert STOP_AT < num_steps <= STOP_AT + 3

    alone = train_loop.train(config(tmp_path / "alone"))
    run = tmp_path / "debug/debug"
    np.testing.assert_allclose(losses(run), losses(alone.checkpoint.parent)[:num_steps], rtol=1e-5)
    # One process without any splitting continues from the checkpoint that the two have written together.
    resumed = train_loop.train(config(tmp_path, resume=True))
    assert resumed.first_step == num_steps
    np.testing.assert_allclose(losses(run), losses(alone.checkpoint.parent), rtol=1e-5)


@pytest.mark.slow
def test_devices_that_share_parameters_have_the_losses_of_one_device(tmp_path):
    def run(num_devices: int) -> list[float]:
        folder = tmp_path / str(num_devices)
        results([start(config(folder, fsdp_devices=num_devices), folder / "pickle", num_devices=num_devices)])
        return losses(folder / "debug/debug")

    np.testing.assert_allclose(run(2), run(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_processes": 2}, "--coordinator-address and --process-id not given"),
        ({"coordinator_address": "h:1", "num_processes": 2, "process_id": 2}, "--process-id is 2, expected 0 to 1"),
    ],
)
def test_missing_flags_are_named(tmp_path, monkeypatch, changes, words):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(errors.ConfigError, match=words):
        distributed.initialize(config(tmp_path, **changes))


def test_the_environment_is_read_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(errors.ConfigError, match="JAX_NUM_PROCESSES is 'two', expected a number"):
        distributed.initialize(config(tmp_path))


def test_one_process_has_nothing_to_agree_on(tmp_path):
    assert distributed.is_first()
    assert not distributed.is_several()
    assert distributed.first_decides(lambda: True)
    with pytest.raises(errors.ConfigError, match="folder that all hosts share"):
        distributed.check_shared(tmp_path / "absent.json")
    np.testing.assert_array_equal(distributed.local_rows(jax.numpy.arange(3)), [0, 1, 2])


@pytest.mark.slow
def test_processes_join_in_spite_of_a_proxy_in_the_environment():
    """The coordinator is given by name, as hosts of a cluster are. Nothing listens where the proxy should be."""
    code = (
        "import sys\n"
        "from openpi.training import config as _config\n"
        "from openpi.training.host import distributed\n"
        "import dataclasses, jax\n"
        "changes = {'coordinator_address': sys.argv[1], 'num_processes': 2, 'process_id': int(sys.argv[2])}\n"
        "distributed.initialize(dataclasses.replace(_config.get_config('debug'), **changes))\n"
        "print(jax.process_count())\n"
    )
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    address = free_address().replace("127.0.0.1", socket.gethostname())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(index)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", **proxies},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]
    try:
        done = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [out.split() for out, _ in done] == [["2"]] * 2, [error[-2000:] for _, error in done]
