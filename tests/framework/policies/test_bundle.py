"""Offline bundles: made of a checkpoint, answering as it does, with adapters merged, and refused when anything is wrong."""

import dataclasses
import errno
import functools
import importlib.util
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from openpi.models import gemma_config
from openpi.models import lora
from openpi.models import lora_merge
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import pi0_fast
from openpi.models import tokenizer as _tokenizer
from openpi.policies import bundle
from openpi.policies import bundle_writer
from openpi.policies import policy_config
from openpi.policies import realman_policy
from openpi.serving import contract_metadata
from openpi.shared import cli
from openpi.shared.errors import UserError
from openpi.training import config as _config
from openpi.training.misc import realman_config
from openpi.training.run import run_config

ROOT = pathlib.Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
CHECKPOINT = GOLDEN / "pi0_checkpoint" / "7"
SIZE = gemma_config.Config(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512)


class QuickModel(_model.BaseModel):
    """Compiles at once and does not look at its weights; its actions depend on the observation."""

    def compute_loss(self, rng, observation, actions, *, train=False):
        raise AssertionError("not part of inference")

    def sample_actions(self, rng, observation, *, num_steps=10, noise=None):
        prompt = jnp.where(observation.tokenized_prompt_mask, observation.tokenized_prompt, 0).sum(1)
        return noise + observation.state[:, None, :] + prompt[:, None, None]


class QuickConfig(pi0_config.Pi0Config):
    def load(self, params, *, remove_extra_params=True):
        return QuickModel(self)


def tiny_pi0(kind=pi0_config.Pi0Config, **changes):
    """The model of the golden files."""
    fields = json.loads((GOLDEN / "pi0.json").read_text())["config"]
    sizes = {"paligemma_variant": SIZE, "action_expert_variant": dataclasses.replace(SIZE, width=32, mlp_dim=96)}
    return kind(**fields | sizes | {"vision_variant": "mu/16"} | changes)


def example():
    return {**realman_policy.make_realman_example(), "prompt": "pick up the cube"}


def some_noise():
    return np.random.default_rng(0).standard_normal((10, 16)).astype(np.float32)


def write_processor(folder):
    """A FAST processor that knows coefficients from -10 to 10, one id each."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = [chr(100 + coefficient) for coefficient in range(-10, 11)]
    bpe.train_from_iterator([], tokenizers.trainers.BpeTrainer(show_progress=False, initial_alphabet=alphabet))
    folder.mkdir()
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "processor_config.json").write_text('{"scale": 10, "min_token": -100}')
    return folder


def train_config(model, name="tiny_realman", **fields):
    return _config.TrainConfig(
        name=name, model=model, data=realman_config.LeRobotRealmanDataConfig(repo_id="realman/demo"), **fields
    )


def quick_config(**model_fields):
    """A config whose model does not look at the weights."""
    return train_config(tiny_pi0(QuickConfig, **model_fields))


def lora_pi0():
    """The model of the golden files with adapters; strengths that tell a forgotten or exchanged one."""

    def adapted(size, rank, strength):
        adapter = lora.LoRAConfig(rank=rank, alpha=rank * strength)
        return dataclasses.replace(size, lora_configs=dict.fromkeys(("attn", "ffn"), adapter))

    plain = tiny_pi0()
    return dataclasses.replace(
        plain,
        paligemma_variant=adapted(plain.paligemma_variant, 4, 1.5),
        action_expert_variant=adapted(plain.action_expert_variant, 8, 0.5),
    )


def step_folder(folder, params_dir):
    """A checkpoint of other golden weights."""
    shutil.copytree(params_dir, folder / "params")
    shutil.copytree(CHECKPOINT / "assets", folder / "assets")
    return folder


@pytest.fixture(scope="module")
def quick_bundle(tmp_path_factory):
    """Read it, do not change it."""
    return bundle_writer.export(quick_config(), CHECKPOINT, tmp_path_factory.mktemp("quick") / "bundle").folder


@pytest.fixture
def own_bundle(quick_bundle, tmp_path):
    return pathlib.Path(shutil.copytree(quick_bundle, tmp_path / "bundle"))


def load(folder, config=None, **kwargs):
    return policy_config.create_trained_policy(config or quick_config(), folder, **kwargs)


def edit_manifest(folder, **fields):
    path = folder / bundle.MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def leaves(params_dir):
    params = _model.restore_params(params_dir, restore_type=np.ndarray)
    return flax.traverse_util.flatten_dict(params, sep="/")


def test_a_bundle_answers_exactly_as_its_checkpoint(quick_bundle):
    params = [leaves(folder / "params") for folder in (CHECKPOINT, quick_bundle)]
    assert params[0].keys() == params[1].keys()
    assert all(np.array_equal(leaf, params[1][path]) for path, leaf in params[0].items())
    obs = example()
    answers = [load(folder).infer(obs, noise=some_noise())["actions"] for folder in (CHECKPOINT, quick_bundle)]
    np.testing.assert_array_equal(*answers)


def test_a_bundle_holds_all_that_is_needed_and_says_what_it_is(quick_bundle):
    files = {path.relative_to(quick_bundle).as_posix() for path in quick_bundle.rglob("*") if path.is_file()}
    manifest = json.loads((quick_bundle / "bundle.json").read_text())
    assert files == {"bundle.json", *manifest["files"]}
    assert {"assets/realman/demo/norm_stats.json", "tokenizer/text.model"} < files
    assert not any("train_state" in name for name in files)
    assert manifest["config"] == "tiny_realman"
    assert manifest["normalization"] == "z-scores"
    assert manifest["source"] == {"checkpoint": "pi0_checkpoint/7", "step": 7}
    assert manifest["model"]["paligemma_variant"]["width"] == 64
    assert manifest["weights"]["dtype"] == "float32"  # the type that this model computes in
    assert str(ROOT) not in json.dumps(manifest)
    assert [path.name for path in quick_bundle.parent.iterdir()] == ["bundle"]


def test_weights_are_bfloat16_for_models_that_compute_in_it(tmp_path):
    made = bundle_writer.export(quick_config(dtype="bfloat16"), CHECKPOINT, tmp_path / "bundle")
    stored = leaves(made.folder / "params")
    assert {leaf.dtype for leaf in stored.values()} == {jnp.dtype("bfloat16")}
    for path, leaf in leaves(CHECKPOINT / "params").items():
        np.testing.assert_array_equal(stored[path], leaf.astype(jnp.bfloat16))


def test_no_cache_is_needed_to_serve_a_bundle_of_a_model_with_the_large_vocabulary(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("OPENPI_DATA_HOME", str(cache))
    (cache / "big_vision").mkdir(parents=True)
    shutil.copy(_tokenizer.DEBUG_MODEL_PATH, cache / "big_vision/paligemma_tokenizer.model")
    config = quick_config(paligemma_variant=dataclasses.replace(SIZE, vocab_size=_tokenizer.PALIGEMMA_VOCAB_SIZE))
    made = bundle_writer.export(config, CHECKPOINT, tmp_path / "bundle")
    from_checkpoint, from_bundle = load(CHECKPOINT, config), load(made.folder, config)
    expected = from_checkpoint.infer(obs := example(), noise=some_noise())["actions"]
    shutil.rmtree(cache)
    np.testing.assert_array_equal(from_bundle.infer(obs, noise=some_noise())["actions"], expected)
    with pytest.raises(UserError, match="paligemma_tokenizer"):
        load(CHECKPOINT, config).infer(obs)
    # The checks of a client see the checkpoint that it was made of.
    data_config = config.data.create(None, config.model)
    told = [
        contract_metadata.describe_checkpoint(config, data_config, folder, example=None, default_prompt=None)
        for folder in (CHECKPOINT, made.folder)
    ]
    assert told[0] == told[1]


def test_merged_adapters_change_the_model_as_they_did_beside_the_weights(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = train_config(lora_pi0())
    folder = step_folder(tmp_path / "run" / "3", GOLDEN / "pi0_lora_params")
    made = bundle_writer.export(config, folder, tmp_path / "bundle")
    adapters = made.manifest["adapters"]
    assert adapters["difference"] < 1e-5
    assert adapters["effect"] > 0.01
    assert "adapters (LoRA) merged: outputs differ by" in caplog.text
    stored = leaves(made.folder / "params")
    assert not any("lora" in path for path in stored)
    made.fit(config).model.load(flax.traverse_util.unflatten_dict(stored, sep="/"), remove_extra_params=False)


@functools.cache
def fast_config():
    """A tiny pi0-FAST with adapters."""
    adapter = lora.LoRAConfig(rank=2, alpha=3.0)
    size = dataclasses.replace(SIZE, depth=1, lora_configs={"attn": adapter, "ffn": adapter})
    return pi0_fast.Pi0FASTConfig(
        dtype="float32",
        paligemma_variant=size,
        vision_variant="mu/56",
        action_dim=14,
        action_horizon=4,
        max_token_len=64,
    )


@functools.cache
def fast_params():
    """Its weights, with adapters that do something."""
    shapes = flax.traverse_util.flatten_dict(
        _model.nnx_utils.to_pure_dict(_model.nnx.state(_model.nnx.eval_shape(fast_config().create, jax.random.key(0))))
    )
    rng = np.random.default_rng(0)
    params = {path: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return flax.traverse_util.unflatten_dict(params)


@pytest.mark.slow
def test_adapters_of_a_fast_model_are_merged():
    config, params = fast_config(), fast_params()
    before = jax.tree.map(np.copy, params)
    check = lora_merge.check(params, lora_merge.merge(params, config), config)
    assert check.is_good
    assert check.difference < 1e-3 * check.effect
    assert jax.tree.all(jax.tree.map(np.array_equal, params, before))


def test_a_bundle_of_a_fast_model_carries_its_processor(tmp_path, monkeypatch):
    processor = write_processor(tmp_path / "fast")
    model = dataclasses.replace(
        fast_config(),
        max_token_len=200,
        fast_model_tokenizer_kwargs={"fast_tokenizer_path": str(processor), "first_action_token": 511},
    )
    config = train_config(model)
    monkeypatch.setattr(bundle_writer.checkpoint_params, "restore_params", lambda *args, **kwargs: fast_params())
    monkeypatch.setattr(lora_merge, "check", lambda *args: lora_merge.Check(0.0, 1.0, 1.0))
    made = bundle_writer.export(config, CHECKPOINT, tmp_path / "bundle")
    assert made.manifest["normalization"] == "quantiles"
    fitted = made.fit(config)
    (here,) = bundle.tokenizers_of(config.data.create(None, model).model_transforms)
    (there,) = bundle.tokenizers_of(made.fit_data(fitted.data.create(None, fitted.model)).model_transforms)
    actions = np.zeros((4, 14))
    expected = here.tokenize("wave", np.zeros(14), actions)
    shutil.rmtree(processor)
    for found, wanted in zip(there.tokenize("wave", np.zeros(14), actions), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    fitted.model.load(_model.restore_params(made.folder / "params"), remove_extra_params=False)


def test_adapters_that_cannot_be_merged_leave_nothing(tmp_path, monkeypatch):
    folder = step_folder(tmp_path / "run" / "3", GOLDEN / "pi0_lora_params")
    monkeypatch.setattr(lora_merge, "check", lambda *args: lora_merge.Check(0.5, 1.0, 1.0))
    with pytest.raises(UserError, match=r"cannot be merged into the weights: outputs differ by 0\.5"):
        bundle_writer.export(train_config(lora_pi0()), folder, tmp_path / "out" / "bundle")
    assert not (tmp_path / "out").exists()


def test_adapters_that_the_config_does_not_know_are_not_dropped_in_silence(tmp_path):
    folder = step_folder(tmp_path / "run" / "3", GOLDEN / "pi0_lora_params")
    with pytest.raises(UserError, match=r"found adapters \(LoRA\), but config 'tiny_realman' has none"):
        bundle_writer.export(train_config(tiny_pi0()), folder, tmp_path / "bundle")
    with pytest.raises(UserError, match="parameters do not fit the model"):
        bundle_writer.export(train_config(lora_pi0()), CHECKPOINT, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def largest_file(folder):
    return max(
        (path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip_a_bit(folder):
    data = bytearray(largest_file(folder).read_bytes())
    data[len(data) // 2] ^= 1
    largest_file(folder).write_bytes(data)


DAMAGE = {
    "a changed bit": (flip_a_bit, "1 files of the bundle are missing or damaged: 'params/.*' has another SHA-256"),
    "a cut file": (lambda folder: os.truncate(largest_file(folder), 10), r"has 10 bytes, expected \d+"),
    "no tokenizer": (lambda folder: (folder / "tokenizer/text.model").unlink(), "'tokenizer/text.model' is missing"),
    "no statistics": (
        lambda folder: shutil.rmtree(folder / "assets"),
        "'assets/realman/demo/norm_stats.json' is missing",
    ),
    "no weights": (
        lambda folder: shutil.rmtree(folder / "params"),
        r"'params/' not found \(found 'assets', 'bundle.json'",
    ),
    "no manifest": (lambda folder: (folder / "bundle.json").unlink(), "incomplete bundle, 'bundle.json' not found"),
    "half a manifest": (lambda folder: os.truncate(folder / "bundle.json", 100), "not a bundle's manifest"),
    "another file": (lambda folder: (folder / "bundle.json").write_text("[]"), "not a bundle's manifest"),
    "a missing entry": (lambda folder: edit_manifest(folder, files={}), "not a bundle's manifest"),
    "a way out": (
        lambda folder: edit_manifest(folder, files={"../x": {"bytes": 1, "sha256": ""}}),
        "'files' names '../x', outside the bundle",
    ),
    "no known scale": (lambda folder: edit_manifest(folder, normalization="minmax"), "'normalization' is 'minmax'"),
    "the future": (
        lambda folder: edit_manifest(folder, version=99),
        "found version 99, expected at most 1. Update this program",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_bundle_is_told_in_one_line(own_bundle, kind):
    harm, message = DAMAGE[kind]
    harm(own_bundle)
    with pytest.raises(UserError) as failure:
        load(own_bundle)
    assert re.search(message, str(failure.value))
    assert str(own_bundle) in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1


def test_a_bundle_is_served_by_its_own_config_only_and_as_it_was_made(own_bundle, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(UserError, match=r"found config 'other', expected the bundle's 'tiny_realman'. Omit the config"):
        load(own_bundle, dataclasses.replace(quick_config(), name="other"))
    changed = dataclasses.replace(
        quick_config(action_horizon=20), data=realman_config.LeRobotRealmanDataConfig(arm_order="left_right")
    )
    obs = example()
    answers = [load(own_bundle, c).infer(obs, noise=some_noise())["actions"] for c in (quick_config(), changed)]
    np.testing.assert_array_equal(*answers)
    assert "model.action_horizon 10 instead of 20" in caplog.text
    assert "data.arm_order 'right_left' instead of 'left_right'" in caplog.text
    # A field that this program does not have cannot be followed.
    edit_manifest(own_bundle, data={"mirrored": True})
    with pytest.raises(
        UserError, match=r"does not fit config 'tiny_realman' \(data has no 'mirrored'\)\. Serve it with"
    ):
        load(own_bundle)


def test_a_bundle_with_the_weights_of_another_model_names_each_with_both_shapes(own_bundle):
    model = json.loads((own_bundle / "bundle.json").read_text())["model"]
    edit_manifest(own_bundle, model={**model, "action_dim": 20})
    with pytest.raises(UserError, match=r"action_in_proj/kernel: shape \(16, 32\), expected \(20, 32\)"):
        load(own_bundle, train_config(tiny_pi0()))


def test_a_checkpoint_is_served_and_exported_with_the_flags_of_its_run(tmp_path, monkeypatch, caplog):
    registered = dataclasses.replace(quick_config(), policy_metadata=realman_config.policy_metadata(10))
    half = dataclasses.replace(registered.data.validation, fraction=0.5)
    data = dataclasses.replace(registered.data, base_camera="cam_low", validation=half)
    model, run = dataclasses.replace(registered.model, action_horizon=6), tmp_path / "run"
    shutil.copytree(CHECKPOINT, run / "7")
    run_config.store(dataclasses.replace(registered, exp_name="run", model=model, data=data), run)
    # The step itself tells of real-time chunking.
    (run / "7/_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": {"rtc_max_delay": 2}}))
    made = bundle_writer.export(registered, run, tmp_path / "bundle")
    assert made.manifest["model"]["rtc_max_delay"] == 2
    obs = example()
    for folder in (run, made.folder):
        policy = load(folder, registered)
        assert policy.infer(obs, noise=some_noise()[:6])["actions"].shape == (6, 14)
        assert (policy.metadata["action_horizon"], policy.metadata["action_chunk"]) == (6, 6)
        assert policy.metadata["cameras"] == ["cam_low", "cam_left_wrist", "cam_right_wrist"]
        with pytest.raises(UserError, match="base camera 'cam_low' is missing"):
            policy.infer({**obs, "images": {"cam_high": obs["images"]["cam_high"]}})
    served = load_script("serve_policy")
    elsewhere = dataclasses.replace(registered.data, repo_id="realman/dual_arm")
    monkeypatch.setitem(_config.all_configs(), "tiny_realman", dataclasses.replace(registered, data=elsewhere))
    for folder in (run / "7", made.folder):
        checkpoint = served.Checkpoint(config="tiny_realman", dir=str(folder))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert served.load_checkpoint(served.Args(policy=checkpoint)).metadata["action_horizon"] == 6
        # Said once, only what a policy depends on, and what is not known.
        assert caplog.text.count("settings of the training run") == caplog.text.count("base_camera 'cam_low'") == 1
        assert "validation" not in caplog.text
        assert caplog.text.count("WARNING") == caplog.text.count("so assumed from config 'tiny_realman': fps 50") == 1
    # A damaged file is no reason to guess.
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: not the config of a run"):
        load(run, registered)


def test_statistics_are_applied_as_recorded_whatever_the_config_says_now(own_bundle, caplog):
    edit_manifest(own_bundle, normalization="quantiles")
    obs = example()
    answers = [load(folder).infer(obs, noise=some_noise())["actions"] for folder in (CHECKPOINT, own_bundle)]
    assert not np.allclose(answers[0], answers[1])
    assert "normalizes by quantiles, as recorded, although its config now says z-scores" in caplog.text


def test_a_bundle_is_neither_overwritten_nor_made_of_a_bundle(own_bundle):
    before = (own_bundle / "bundle.json").read_bytes()
    with pytest.raises(UserError, match=r"already exists\. Choose another folder, or replace it with --overwrite"):
        bundle_writer.export(quick_config(), CHECKPOINT, own_bundle)
    with pytest.raises(UserError, match="found a bundle, expected a checkpoint"):
        bundle_writer.export(quick_config(), own_bundle, own_bundle.with_name("again"))
    assert (own_bundle / "bundle.json").read_bytes() == before
    (own_bundle / "old").touch()
    bundle_writer.export(quick_config(), CHECKPOINT, own_bundle, overwrite=True)
    assert not (own_bundle / "old").exists()
    assert [path.name for path in own_bundle.parent.iterdir()] == ["bundle"]
    load(own_bundle)


def test_a_full_disk_leaves_what_was_there(own_bundle, monkeypatch):
    usage = shutil.disk_usage(own_bundle)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"0\.00 GB free, the bundle needs 0\.07 GB. Free space"):
        bundle_writer.export(quick_config(), CHECKPOINT, own_bundle, overwrite=True)
    monkeypatch.undo()

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle_writer.ocp.PyTreeCheckpointer, "save", fail)
    with pytest.raises(UserError, match=r"could not be written .*No space left on device"):
        bundle_writer.export(quick_config(), CHECKPOINT, own_bundle, overwrite=True)
    assert [path.name for path in own_bundle.parent.iterdir()] == ["bundle"]
    load(own_bundle)


def test_what_killed_exports_left_goes_away_and_what_others_write_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".bundle.partial-{dead.pid}").mkdir()
    (tmp_path / f".bundle.partial-{os.getppid()}").mkdir()
    bundle_writer.export(quick_config(), CHECKPOINT, tmp_path / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", f".bundle.partial-{os.getppid()}"}


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"third_party/openpi/scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_script_exports_and_the_server_takes_the_bundle_without_being_told_its_config(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "setup_logging", lambda: None)
    monkeypatch.setitem(_config.all_configs(), "tiny_realman", quick_config())
    export, serve = load_script("export"), load_script("serve_policy")
    args = export.Args("tiny_realman", str(CHECKPOINT.parent))
    export.main(args)
    out = tmp_path / "exports/tiny_realman/pi0_checkpoint-7"
    assert capsys.readouterr().out == f"{out}\n"
    for name, folder, message in (
        (None, CHECKPOINT, "not a bundle, so its config must be named. Add --policy.config"),
        ("pi0_realman", out, "expected the bundle's 'tiny_realman'"),
    ):
        with pytest.raises(UserError, match=message):
            serve.load_checkpoint(serve.Args(policy=serve.Checkpoint(config=name, dir=str(folder))))
    served = serve.load_checkpoint(serve.Args(policy=serve.Checkpoint(dir=str(out))))
    assert served.metadata["config"] == "tiny_realman"
    assert (served.metadata["checkpoint"], served.metadata["step"]) == ("pi0_checkpoint/7", 7)
    with pytest.raises(SystemExit):
        cli.run(export.main, lambda: args)
    assert "already exists" in capsys.readouterr().err


def test_make_leaves_the_config_of_a_bundle_to_the_bundle_unless_it_is_named(tmp_path):
    (tmp_path / "bundle.json").touch()

    def recipe(*variables):
        command = ["make", "-n", "-o", ".venv/.ready", "serve", *variables]
        environment = {key: value for key, value in os.environ.items() if key != "CONFIG"}
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment).stdout

    assert "--policy.config" not in recipe(f"CKPT={tmp_path}")
    assert '--policy.config "debug_realman"' in recipe(f"CKPT={tmp_path}", "CONFIG=debug_realman")
    assert '--policy.config "pi0_realman"' in recipe("CKPT=elsewhere")
