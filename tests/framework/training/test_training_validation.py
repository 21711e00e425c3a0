"""Validation: its figures, the best checkpoint, and no effect on the losses of a run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from openpi.policies import checkpoint_folder
from openpi.training import config as _config
from openpi.training import sharding
from openpi.training.configs.validation_split import ValidationSplit
from openpi.training.reports import divergence
from openpi.training.run import train_loop
from openpi.training.run import validation
from openpi.training.stats import norm_stats
from openpi.training.step import train_state


@pytest.fixture
def config(home, tiny_model):
    config = _config.get_config("debug_realman")
    config = dataclasses.replace(
        config,
        model=tiny_model,
        data=dataclasses.replace(config.data, validation=ValidationSplit(episodes=(1,))),
        batch_size=2,
        validation_samples=4,
        num_train_steps=4,
        log_interval=1,
        save_interval=1,
        ema_decay=0.5,
    )
    norm_stats.compute_norm_stats(config)
    return config


def test_figures_are_in_the_robots_units_and_repeat(config):
    mesh = sharding.make_mesh(1)
    model_def = train_state.model_definition(config)
    params = train_state.init_train_state(config, jax.random.key(0), mesh).params
    judge = validation.create(config, mesh, model_def)
    metrics = judge.run(params)
    assert judge.run(params) == metrics
    names = [key for key in metrics if key.startswith("error/")]
    assert len(names) == 14
    assert names[0] == "error/right_waist/deg"
    assert names[6] == "error/right_gripper"
    joints = [metrics[name] for name in names if name.endswith("/deg")]
    np.testing.assert_allclose(metrics["joint_error_deg"], np.mean(joints))
    np.testing.assert_allclose(
        metrics["gripper_error"], np.mean([metrics["error/right_gripper"], metrics["error/left_gripper"]])
    )
    assert "deg (worst " in validation.brief(metrics)


def test_the_error_is_the_distance_between_sampled_and_recorded_actions(config, monkeypatch):
    """The model answers with the recorded actions, except for one joint that is 2 degrees off on the robot."""
    mesh = sharding.make_mesh(1)
    model_def = train_state.model_definition(config)
    params = train_state.init_train_state(config, jax.random.key(0), mesh).params
    judge = validation.create(config, mesh, model_def)
    stats = judge._loader.data_config().norm_stats["actions"]

    def answer(params, rng, index, batch):
        observation, actions = batch
        # The model's layout starts with the left arm. Its elbow is number 2 there and number 9 on the robot.
        offset = np.zeros(32, np.float32)
        offset[2] = np.deg2rad(2.0) / (stats.std[2] + 1e-6)
        return np.float32(0.5), actions + offset, observation.state, actions

    monkeypatch.setattr(judge, "_judge", answer)
    metrics = judge.run(params)
    assert metrics["valid_loss"] == 0.5
    np.testing.assert_allclose(metrics["error/left_elbow/deg"], 2.0, rtol=1e-3)
    np.testing.assert_allclose(metrics["joint_error_deg"], 2.0 / 12, rtol=1e-3)
    np.testing.assert_allclose(metrics["gripper_error"], 0, atol=1e-5)


def test_without_names_the_errors_are_numbered_and_keep_their_unit():
    metrics = validation._Dims({}).report(np.array([0.5, 1.5]))
    assert metrics == {"error/dim_0": 0.5, "error/dim_1": 1.5}


def test_a_run_keeps_its_best_and_its_last_checkpoint_also_after_a_resume(config, monkeypatch):
    """The scores are given: step 1 is the best one, and its checkpoint must survive the resume."""
    scores = {0: 0.9, 1: 0.2, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.1}
    asked = []

    def run(self, params):
        asked.append(params)
        return {"valid_loss": 1.0, "action_error": scores[len(asked)]}

    monkeypatch.setattr(validation.Validation, "run", run)
    summary = train_loop.train(config)  # step 0 is not saved: validations are of steps 1, 2 and 3
    folder = summary.checkpoint.parent

    def steps():
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())

    assert steps() == [1, 3]
    assert checkpoint_folder.resolve(folder / "best").resolve().name == "1"
    assert checkpoint_folder.resolve(folder).name == "3"
    train_loop.train(dataclasses.replace(config, resume=True, num_train_steps=5))
    assert steps() == [1, 4]
    assert (folder / "best").resolve().name == "1"
    train_loop.train(dataclasses.replace(config, resume=True, num_train_steps=6))
    assert (folder / "best").resolve().name == "5"
    lines = [json.loads(line) for line in (folder / "validation_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert (folder / "validation_log.csv").read_text().splitlines()[0] == "step,valid_loss,action_error"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_keeps_its_best_checkpoint_when_a_later_score_is_not_finite(config, monkeypatch):
    scores = iter([1.0, 0.5, float("nan"), 0.7])
    monkeypatch.setattr(validation.Validation, "run", lambda *_: {"valid_loss": 1.0, "action_error": next(scores)})
    folder = train_loop.train(dataclasses.replace(config, num_train_steps=5)).checkpoint.parent
    assert sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) == [2, 4]
    assert (folder / "best").readlink().name == "2"


@pytest.mark.parametrize("at", ["loss", "actions"])
def test_a_validation_that_is_not_finite_ends_the_run_like_a_loss(config, monkeypatch, at):
    """The third validation has one sample with a figure that is not finite."""
    asked = []

    def judge(params, rng, index, batch):
        asked.append(index)
        observation, actions = batch
        actions = np.array(actions)
        found = actions.copy()
        is_bad = len(asked) == 6  # two batches each
        if at == "actions" and is_bad:
            found[1, 0, 0] = np.inf
        return np.float32(np.nan if at == "loss" and is_bad else 0.5), found, np.array(observation.state), actions

    def create(*args):
        judged = made(*args)
        judged._judge = judge
        return judged

    made = validation.create
    monkeypatch.setattr(validation, "create", create)
    words = "valid_loss nan" if at == "loss" else "sampled actions not finite for 1 of 4 samples"
    with pytest.raises(divergence.DivergedError, match=f"step 3: the validation has {words}. Nothing was saved") as e:
        train_loop.train(config)
    path = config.checkpoint_dir / "diverged_step_3.npz"
    assert str(path) in str(e.value)
    with np.load(path) as stored:
        assert np.isfinite(stored["actions"]).all()
    # What was saved before is left, and so is its rank. The answers were all right, so the scores are equal.
    assert checkpoint_folder.resolve(config.checkpoint_dir).name == "2"
    assert (config.checkpoint_dir / "best").readlink().name == "2"


def test_a_run_with_validation_has_the_losses_of_one_without(config):
    def losses(name, **changes):
        summary = train_loop.train(dataclasses.replace(config, exp_name=name, num_train_steps=3, **changes))
        text = (summary.checkpoint.parent / "train_log.jsonl").read_text()
        return [json.loads(line)["loss"] for line in text.splitlines()]

    rare = losses("rare", save_interval=100)
    often = losses("often", save_interval=100, validation_interval=1)
    assert rare == often
