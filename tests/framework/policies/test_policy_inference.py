"""A policy from a checkpoint of the original: the chain around the model, its numbers, and what it leaves untouched."""

import copy
import dataclasses
import functools
import json
import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi import transforms as _transforms
from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.policies import checkpoint_folder
from openpi.policies import example_observation
from openpi.policies import policy as _policy
from openpi.policies import policy_config
from openpi.policies import realman_policy
from openpi.shared import normalize
from openpi.shared.errors import DataError
from openpi.shared.errors import UserError
from openpi.training import config as _config
from openpi.training.misc import realman_config

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
CHECKPOINT = GOLDEN / "pi0_checkpoint" / "7"
HORIZON = 10


class QuickModel(_model.BaseModel):
    """Compiles at once; its actions depend on everything that a policy can get wrong."""

    def compute_loss(self, rng, observation, actions, *, train=False):
        raise AssertionError("not part of inference")

    def sample_actions(self, rng, observation, *, num_steps=10, noise=None):
        batch = observation.state.shape[0]
        shape = (batch, self.action_horizon, self.action_dim)
        noise = jax.random.normal(rng, shape) if noise is None else noise
        images = sum((i + 1) * image.mean((1, 2, 3)) for i, image in enumerate(observation.images.values()))
        prompt = jnp.where(observation.tokenized_prompt_mask, observation.tokenized_prompt, 0).sum(1) / 1000
        return noise / num_steps + observation.state[:, None, :] + (images + prompt)[:, None, None]


class QuickConfig(pi0_config.Pi0Config):
    """The quick model in the place of pi0, for all that goes on around the model."""

    def load(self, params, *, remove_extra_params=True):
        return QuickModel(self)


def _tiny_pi0(kind=pi0_config.Pi0Config, **changes):
    """The model of the golden files."""
    size = gemma_config.Config(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512)
    fields = json.loads((GOLDEN / "pi0.json").read_text())["config"]
    fields["paligemma_variant"] = size
    fields["action_expert_variant"] = dataclasses.replace(size, width=32, mlp_dim=96)
    return kind(**fields | {"vision_variant": "mu/16", **changes})


def _train_config(**data_fields):
    return _config.TrainConfig(
        name="tiny_realman",
        model=_tiny_pi0(QuickConfig),
        data=realman_config.LeRobotRealmanDataConfig(**{"repo_id": "realman/demo", **data_fields}),
        policy_metadata={"robot": "realman_rm65_dual"},
    )


@functools.cache
def _trained_policy(default_prompt=None):
    return policy_config.create_trained_policy(_train_config(), CHECKPOINT, default_prompt=default_prompt)


def _example():
    return {**realman_policy.make_realman_example(), "prompt": "pick up the cube"}


def _noise(seed=0):
    return np.random.default_rng(seed).standard_normal((HORIZON, 16)).astype(np.float32)


def _golden_sample():
    """Sample 0 of the golden batch as an unbatched observation with its noise and the actions sampled in 3 steps."""
    arrays = np.load(GOLDEN / "pi0.npz")
    y, x, c = np.ogrid[:224, :224, :3]
    images = {
        key: np.floor(127.5 + 127 * np.sin(0.045 * (y + 1) * (c + 1) + 0.031 * x + 2.1 * i)).astype(np.uint8)
        for i, key in enumerate(_model.IMAGE_KEYS)
    }
    obs = {
        "image": images,
        "image_mask": {key: arrays[f"obs/image_mask/{key}"][0] for key in images},
        "state": arrays["obs/state"][0],
        "tokenized_prompt": arrays["obs/tokenized_prompt"][0],
        "tokenized_prompt_mask": arrays["obs/tokenized_prompt_mask"][0],
    }
    return obs, arrays["noise"][0], arrays["sample_3"][0]


def test_sampled_actions_equal_those_of_the_original():
    obs, noise, sample = _golden_sample()
    model = _tiny_pi0().load(_model.restore_params(GOLDEN / "pi0_params"))
    result = _policy.Policy(model, sample_kwargs={"num_steps": 3}).infer(obs, noise=noise)
    np.testing.assert_allclose(result["actions"], sample, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(result["state"], obs["state"])
    assert result["actions"].flags.writeable


def test_a_checkpoint_of_the_original_becomes_a_policy():
    config = dataclasses.replace(_train_config(), model=_tiny_pi0())
    policy = policy_config.create_trained_policy(config, CHECKPOINT.parent, sample_kwargs={"num_steps": 1})
    actions = policy.infer(_example())["actions"]
    assert actions.shape == (HORIZON, 14)
    assert np.isfinite(actions).all()


def test_a_trained_policy_returns_the_robots_actions_and_timing():
    policy = _trained_policy()
    result = policy.infer(_example())
    assert set(result) == {"actions", "policy_timing"}
    assert result["actions"].shape == (HORIZON, 14)
    assert np.isfinite(result["actions"]).all()
    assert set(result["policy_timing"]) == {"infer_ms", "preprocess_ms", "postprocess_ms"}
    assert policy.metadata == {"robot": "realman_rm65_dual"}


def test_the_chain_is_the_transforms_around_the_bare_model():
    noise, obs = _noise(), _example()
    config = _train_config()
    data = config.data.create(None, config.model)
    stats = normalize.load(CHECKPOINT / "assets" / "realman" / "demo")
    inputs = [*data.data_transforms.inputs, _transforms.Normalize(stats), *data.model_transforms.inputs]
    outputs = [*data.model_transforms.outputs, _transforms.Unnormalize(stats), *data.data_transforms.outputs]
    prepared = _transforms.compose(inputs)(obs)
    batch = _model.Observation.from_dict(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prepared))
    sampled = QuickModel(config.model).sample_actions(jax.random.key(0), batch, noise=noise[None])
    expected = _transforms.compose(outputs)({"state": prepared["state"], "actions": np.asarray(sampled[0])})
    np.testing.assert_allclose(
        _trained_policy().infer(obs, noise=noise)["actions"], expected["actions"], rtol=2e-5, atol=2e-5
    )


def test_noise_decides_the_result_and_without_it_calls_differ():
    policy, obs = _trained_policy(), _example()
    with_noise = [policy.infer(obs, noise=noise)["actions"] for noise in (_noise(1), _noise(1)[None], _noise(2))]
    np.testing.assert_array_equal(with_noise[0], with_noise[1])
    assert not np.array_equal(with_noise[0], with_noise[2])
    assert not np.array_equal(policy.infer(obs)["actions"], policy.infer(obs)["actions"])


def _some_requests(count):
    rng = np.random.default_rng(3)
    for _ in range(count):
        request = realman_policy.make_realman_example()
        yield {**request, "state": rng.uniform(-1, 1, 14), "prompt": "do " + "x" * int(rng.integers(1, 9))}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_batch_gives_what_single_calls_give(count):
    requests = list(_some_requests(count))
    policies = [policy_config.create_trained_policy(_train_config(), CHECKPOINT) for _ in range(2)]
    alone = [policies[0].infer(request)["actions"] for request in requests]
    together = [result["actions"] for result in policies[1].infer_batch(requests)]
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)
    # And both go on with the same random numbers.
    np.testing.assert_array_equal(*[policy.infer(requests[0])["actions"] for policy in policies])


def test_a_batch_with_a_bad_observation_draws_no_random_numbers():
    good, bad = (policy_config.create_trained_policy(_train_config(), CHECKPOINT) for _ in range(2))
    (request,) = _some_requests(1)
    with pytest.raises(DataError, match="'state' is missing"):
        bad.infer_batch([request, {"images": request["images"], "prompt": "x"}])
    np.testing.assert_array_equal(good.infer(request)["actions"], bad.infer(request)["actions"])


def test_equal_random_keys_of_either_kind_give_equal_actions():
    obs, _, _ = _golden_sample()
    typed, raw, other = (
        _policy.Policy(QuickModel(_tiny_pi0()), rng=key).infer(obs)["actions"]
        for key in (jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(4))
    )
    np.testing.assert_array_equal(typed, raw)
    assert not np.array_equal(typed, other)


def test_read_only_observations_are_served_and_never_changed():
    obs = _example()
    for leaf in jax.tree.leaves(obs):
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
    before = copy.deepcopy(obs)
    _trained_policy().infer(obs)
    assert obs.keys() == before.keys()
    jax.tree.map(np.testing.assert_array_equal, obs, before)


def test_the_default_prompt_stands_in_for_a_missing_one():
    obs, noise = _example(), _noise()
    with_default = _trained_policy("pick up the cube")
    without_prompt = {key: value for key, value in obs.items() if key != "prompt"}
    np.testing.assert_array_equal(
        with_default.infer(without_prompt, noise=noise)["actions"], with_default.infer(obs, noise=noise)["actions"]
    )
    with pytest.raises(ValueError, match=r"[Pp]rompt"):
        _trained_policy().infer(without_prompt)


def test_text_that_no_transform_consumes_is_named():
    obs, _, _ = _golden_sample()
    model = QuickModel(_tiny_pi0())
    with pytest.raises(DataError, match=r"\['note'\] is <U5 after the transforms, expected numbers"):
        _policy.Policy(model).infer({**obs, "note": "hello"})


def _copy_checkpoint(path, *, assets=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(CHECKPOINT, path, ignore=None if assets else shutil.ignore_patterns("assets"))
    return path


def test_a_run_folder_stands_for_its_newest_step(tmp_path, caplog):
    for step in ("9", "10", "8"):
        (tmp_path / step / "params").mkdir(parents=True)
    (tmp_path / "11").mkdir()  # no parameters in it
    (tmp_path / "12.orbax-checkpoint-tmp-0" / "params").mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        assert checkpoint_folder.resolve(tmp_path) == tmp_path / "10"
    assert "using the newest: step 10" in caplog.text
    assert checkpoint_folder.resolve(str(tmp_path / "9")) == tmp_path / "9"


def test_a_folder_of_runs_stands_for_the_run_that_was_saved_last(tmp_path):
    for saved, run in enumerate(("second", "third", "first")):
        step = tmp_path / run / "5"
        (step / "params").mkdir(parents=True)
        os.utime(step, (saved, saved))
    (tmp_path / "without_checkpoints").mkdir()
    assert checkpoint_folder.resolve(tmp_path) == tmp_path / "first" / "5"


def test_folders_that_are_no_checkpoints_are_told_apart(tmp_path):
    (tmp_path / "run" / "5" / "params").mkdir(parents=True)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "model.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for folder, message in {
        tmp_path / "run" / "5" / "params": r"use the folder above it: '.*5'",
        tmp_path / "torch": r"found a PyTorch checkpoint \('model.safetensors'\), expected a JAX one",
        tmp_path / "notes.txt": "it is a file",
        tmp_path / "empty": "it is empty",
        tmp_path / "absent": "absent",
        CHECKPOINT / "assets": "found 'realman'",
    }.items():
        with pytest.raises(UserError, match=message):
            checkpoint_folder.resolve(folder)


def test_statistics_come_from_the_checkpoint_and_training_assets_are_never_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    far_away = _config.AssetsConfig(assets_dir="gs://openpi-assets/nowhere", asset_id="realman/demo")
    policy = policy_config.create_trained_policy(_train_config(repo_id="someone/else", assets=far_away), CHECKPOINT)
    obs, noise = _example(), _noise()
    expected = _trained_policy().infer(obs, noise=noise)["actions"]
    np.testing.assert_array_equal(policy.infer(obs, noise=noise)["actions"], expected)
    assert list(tmp_path.iterdir()) == []


def test_the_only_statistics_of_a_checkpoint_are_used_under_any_name(caplog):
    with caplog.at_level(logging.WARNING):
        stats = checkpoint_folder.load_norm_stats(CHECKPOINT, "realman/other")
    assert "no norm stats of 'realman/other' found, using the only ones, of 'realman/demo'" in caplog.text
    np.testing.assert_array_equal(stats["state"].mean, normalize.load(CHECKPOINT / "assets/realman/demo")["state"].mean)


def test_missing_or_ambiguous_statistics_are_listed(tmp_path):
    with pytest.raises(UserError, match=r"no norm stats of 'realman/demo' \(found: none\)"):
        policy_config.create_trained_policy(_train_config(), _copy_checkpoint(tmp_path / "1", assets=False))
    for name in ("one", "realman/two"):
        shutil.copytree(CHECKPOINT / "assets/realman/demo", tmp_path / "1" / "assets" / name)
    with pytest.raises(UserError, match=r"\(found: 'one', 'realman/two'\)"):
        checkpoint_folder.load_norm_stats(tmp_path / "1", "realman/demo")


def test_given_statistics_and_sample_arguments_take_effect():
    stats = {
        key: normalize.NormStats(mean=np.full(14, mean), std=np.ones(14))
        for key, mean in (("state", 0), ("actions", 5))
    }
    config = _train_config(use_delta_joint_actions=False)
    noise, obs = _noise(), _example()
    shifted, plain = (
        policy_config.create_trained_policy(
            config, CHECKPOINT, norm_stats={**stats, "actions": actions}, sample_kwargs={"num_steps": 2}
        ).infer(obs, noise=noise)["actions"]
        for actions in (stats["actions"], stats["state"])
    )
    np.testing.assert_allclose(shifted - plain, 5.0, rtol=1e-5)


def test_the_argument_that_decides_a_shape_is_no_number_of_the_program():
    class Writer(QuickModel):
        def sample_actions(self, rng, observation, *, max_decoding_steps=4, temperature=0.0):
            return jnp.full((observation.state.shape[0], max_decoding_steps), temperature)

    model = Writer(_tiny_pi0())
    state = {"state": np.zeros(3, np.float32), "image": {"base_0_rgb": np.zeros((4, 4, 3), np.uint8)}}
    policy = _policy.Policy(model, sample_kwargs={"max_decoding_steps": 7, "temperature": 0.5})
    np.testing.assert_array_equal(policy.infer(state)["actions"], np.full(7, 0.5, np.float32))
    # A model that takes no noise is asked one by one.
    assert [len(result["actions"]) for result in policy.infer_batch([state] * 3)] == [7, 7, 7]


def test_repack_transforms_wrap_the_whole_chain():
    repack = _transforms.Group(
        inputs=[_transforms.RepackTransform({"state": "qpos", "images": {"cam_high": "front"}, "prompt": "task"})],
        outputs=[lambda data: {"targets": data["actions"]}],
    )
    policy = policy_config.create_trained_policy(_train_config(), CHECKPOINT, repack_transforms=repack)
    obs = _example()
    result = policy.infer({"qpos": obs["state"], "front": obs["images"]["cam_high"], "task": "wave"})
    assert result["targets"].shape == (HORIZON, 14)


def test_a_checkpoint_of_another_config_is_refused():
    config = dataclasses.replace(_train_config(), model=_tiny_pi0(pi05=True, max_token_len=40))
    with pytest.raises(DataError, match="checkpoint of another config"):
        policy_config.create_trained_policy(config, CHECKPOINT)


def test_examples_are_found_by_the_transforms_of_the_robot():
    data = _train_config().data.create(None, _tiny_pi0())
    example = example_observation.for_transforms(data.data_transforms)
    assert set(example) == set(realman_policy.make_realman_example())
    assert example_observation.for_transforms(_transforms.Group()) is None


@pytest.mark.parametrize("error", [KeyError("joint"), TypeError("no len()"), IndexError("7"), AttributeError("shape")])
def test_transforms_that_stumble_over_an_observation_blame_it_and_not_the_program(error):
    def stumble(_):
        raise error

    with pytest.raises(DataError, match=f"observation: {type(error).__name__}: "):
        _policy.Policy(QuickModel(_tiny_pi0()), transforms=[stumble]).infer({})


def test_a_missing_file_is_no_fault_of_the_observation():
    def lose(_):
        raise FileNotFoundError(2, "No such file", "tokenizer.model")

    with pytest.raises(FileNotFoundError):
        _policy.Policy(QuickModel(_tiny_pi0()), transforms=[lose]).infer({})
