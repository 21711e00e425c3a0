"""A step that is copied alone says how it was trained, and whoever uses it does not guess."""

import dataclasses
import json
import logging
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.policies import bundle_writer
from openpi.policies import policy_config
from openpi.policies import realman_policy
from openpi.policies import step_settings
from openpi.serving import contract_metadata
from openpi.shared import normalize
from openpi.shared.errors import UserError
from openpi.training import config as _config
from openpi.training.misc import realman_config
from openpi.training.run import run_config
from openpi.training.stats import norm_stats

CHECKPOINT = pathlib.Path(__file__).parents[2] / "golden" / "pi0_checkpoint" / "7"
SIZE = gemma_config.Config(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512)
LEFT_FIRST = [*realman_policy.DIM_NAMES[7:], *realman_policy.DIM_NAMES[:7]]


class QuickModel(_model.BaseModel):
    """Compiles at once. Its actions are the state."""

    def compute_loss(self, rng, observation, actions, *, train=False):
        raise AssertionError("not part of inference")

    def sample_actions(self, rng, observation, **kwargs):
        return jnp.repeat(observation.state[:, None, :], self.action_horizon, axis=1)


class QuickConfig(pi0_config.Pi0Config):
    def load(self, params, *, remove_extra_params=True):
        return QuickModel(self)


def config(horizon=10, name="tiny_realman", **data):
    fields = json.loads((CHECKPOINT.parents[1] / "pi0.json").read_text())["config"]
    sizes = {"paligemma_variant": SIZE, "action_expert_variant": SIZE, "vision_variant": "mu/16"}
    return _config.TrainConfig(
        name=name,
        exp_name="run",
        model=QuickConfig(**fields | sizes | {"action_horizon": horizon}),
        data=realman_config.LeRobotRealmanDataConfig(**data),
        policy_metadata=realman_config.policy_metadata(10),
    )


def rename_arms(home):
    """Give the dataset the names of another arm order."""
    path = home / "data/lerobot/realman/dual_arm/meta/info.json"
    info = json.loads(path.read_text())
    for key in ("observation.state", "action"):
        info["features"][key]["names"] = [LEFT_FIRST]
    path.write_text(json.dumps(info))


def trained(home, run_of, *, fps=50, has_settings=True, has_run=False):
    """Make a step as training with `run_of` leaves it, with real statistics and invented weights."""
    info = home / "data/lerobot/realman/dual_arm/meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": fps}))
    if run_of.data.arm_order == "left_right":
        rename_arms(home)
    norm_stats.compute_norm_stats(run_of)
    data_config = dataclasses.replace(run_of.data.create(run_of.assets_dirs, run_of.model), fps=fps)
    step = home / "copied" / "20000"
    shutil.copytree(CHECKPOINT / "params", step / "params")
    assets = step / "assets" / run_of.data.repo_id
    normalize.save(assets, data_config.norm_stats, data_config.norm_stats_provenance)
    if has_settings:
        step_settings.write(step / "assets", step_settings.describe(run_of, data_config))
    if has_run:
        run_config.store(run_of, step.parent)
    return step


def told(step, registered, prompt=None):
    """Return what a server says about a step."""
    settings = policy_config.trained_settings(registered, step)
    return contract_metadata.describe_checkpoint(
        settings.train_config,
        settings.data_config,
        step,
        example=realman_policy.make_realman_example(),
        default_prompt=prompt,
    )


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


FLAGS = {
    "arm order": ({"arm_order": "left_right"}, {"dim_names": LEFT_FIRST}),
    "no deltas": ({"use_delta_joint_actions": False}, {"delta_mask": None}),
    "base camera": ({"base_camera": "cam_low"}, {"cameras": ["cam_low", "cam_left_wrist", "cam_right_wrist"]}),
    "short horizon": ({"horizon": 6}, {"action_horizon": 6, "action_chunk": 6}),
    "long horizon": ({"horizon": 40}, {"action_horizon": 40, "action_chunk": 25}),
    "30 Hz": ({"fps": 30}, {"fps": 30}),
    "29.97 Hz": ({"fps": 29.97}, {"fps": 29.97}),
    "all of them": (
        {"arm_order": "left_right", "use_delta_joint_actions": False, "horizon": 6, "fps": 20.0},
        {"dim_names": LEFT_FIRST, "delta_mask": None, "action_horizon": 6, "fps": 20},
    ),
}


@pytest.mark.parametrize(("flags", "expected"), FLAGS.values(), ids=FLAGS)
def test_a_step_copied_alone_is_served_and_exported_as_it_was_trained(home, caplog, flags, expected):
    fps = flags.get("fps", 50)
    step = trained(home, config(**{key: value for key, value in flags.items() if key != "fps"}), fps=fps)
    caplog.clear()
    registered = config()
    metadata = told(step, registered)
    assert {key: metadata.get(key) for key in expected} == expected
    assert warnings(caplog) == []
    made = bundle_writer.export(registered, step, home / "bundle")
    exported = told(made.folder, registered)
    assert {**exported, "checkpoint": None} == {**metadata, "checkpoint": None}
    assert made.manifest["fps"] == fps


def test_a_step_copied_alone_and_its_bundle_answer_the_same(home):
    step, registered = trained(home, config(arm_order="left_right", horizon=6, use_delta_joint_actions=False)), config()
    made = bundle_writer.export(registered, step, home / "bundle")
    observation = {**realman_policy.make_realman_example(), "prompt": "wave"}
    answers = [
        policy_config.create_trained_policy(registered, folder).infer(observation) for folder in (step, made.folder)
    ]
    np.testing.assert_array_equal(answers[0]["actions"], answers[1]["actions"])
    assert answers[0]["actions"].shape == (6, 14)


OLDER = {
    "arm order": (
        {"arm_order": "left_right"},
        r"computed with RealmanInputs\(.*left_right.*the config has .*right_left",
    ),
    "no deltas": ({"use_delta_joint_actions": False}, r"the config has DeltaActions"),
    "horizon": ({"horizon": 6}, r"computed with an action horizon of 6, the config has 10"),
}


@pytest.mark.parametrize(("flags", "message"), OLDER.values(), ids=OLDER)
def test_an_older_step_that_contradicts_the_config_is_refused_and_the_remedy_works(home, flags, message):
    run_of = config(**flags)
    step = trained(home, run_of, has_settings=False)
    for use in (lambda: told(step, config()), lambda: bundle_writer.export(config(), step, home / "bundle")):
        with pytest.raises(UserError, match=message) as failure:
            use()
        assert "\n" not in str(failure.value)
        assert f"{step}: contradicts config 'tiny_realman'" in str(failure.value)
    assert not (home / "bundle").exists()
    # Both remedies: the config of the training, and the file of its run.
    assert told(step, run_of)["action_horizon"] == run_of.model.action_horizon
    assert f"copy the run's 'config.json' into {step.parent}" in str(failure.value)
    run_config.store(run_of, step.parent)
    assert told(step, config())["dim_names"] == told(step, run_of)["dim_names"]


def test_an_older_step_takes_its_rate_from_its_statistics(home):
    step = trained(home, config(), fps=30, has_settings=False)
    assert told(step, config())["fps"] == 30
    run_config.store(config(), step.parent)
    assert told(step, config())["fps"] == 30
    assert bundle_writer.export(config(), step, home / "bundle").manifest["fps"] == 30


def test_statistics_from_elsewhere_do_not_tell_the_rate(home, caplog):
    run_of = config()
    step = trained(home, run_of, fps=30, has_settings=False)
    elsewhere = dataclasses.replace(run_of.data.assets, assets_dir="elsewhere")
    run_config.store(dataclasses.replace(run_of, data=dataclasses.replace(run_of.data, assets=elsewhere)), step.parent)
    assert told(step, config())["fps"] == 50
    assert warnings(caplog)[-1].endswith("assumed from config 'tiny_realman': fps 50")


def test_what_nothing_in_the_step_tells_is_said_in_one_line(home, caplog):
    """As of the original project: statistics, and not a word about their origin."""
    registered = config(repo_id="realman/demo", base_camera="cam_low")
    assert told(CHECKPOINT, registered)["fps"] == 50
    (line,) = warnings(caplog)
    assert "\n" not in line
    assert line.startswith(f"{CHECKPOINT}: not recorded there, so assumed from config 'tiny_realman': fps 50, ")
    for part in (
        "action_horizon 10",
        "use_delta_joint_actions True",
        "arm_order 'right_left'",
        "base_camera 'cam_low'",
        "normalization 'z-scores'",
    ):
        assert part in line


def test_statistics_of_another_camera_are_not_a_contradiction(home):
    """They do not depend on images, so one file serves both."""
    step = trained(home, config(base_camera="cam_low"), has_settings=False)
    assert told(step, config())["cameras"][0] == "cam_high"


def test_other_words_for_the_same_transforms_are_not_a_contradiction(home):
    step = trained(home, config(), has_settings=False)
    edit_provenance(step, transforms=["as an earlier version wrote them"])
    assert told(step, config())["fps"] == 50
    with pytest.raises(UserError, match="as an earlier version wrote them"):
        told(step, config(arm_order="left_right"))


def edit_provenance(step, **changes):
    (path,) = step.rglob(normalize.PROVENANCE_NAME)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes", [{"datasets": [{}]}, {"datasets": []}, {"probe": {}}])
def test_a_damaged_provenance_is_told_in_one_line(home, changes):
    step = trained(home, config(), has_settings=False)
    edit_provenance(step, **{"transforms": [], **changes})
    with pytest.raises(UserError, match=r"provenance\.json: not the origin of statistics") as failure:
        told(step, config())
    assert "\n" not in str(failure.value)


def test_statistics_of_another_arm_order_next_to_the_settings_are_refused(home):
    step = trained(home, config())
    rename_arms(home)
    norm_stats.compute_norm_stats(swapped := config(arm_order="left_right"))
    for path in (swapped.assets_dirs / "realman/dual_arm").iterdir():
        shutil.copy(path, step / "assets/realman/dual_arm")
    with pytest.raises(UserError, match="its statistics were computed with RealmanInputs"):
        told(step, config())


def test_the_settings_of_a_step_have_priority_over_a_file_next_to_it(home):
    step = trained(home, config(horizon=6))
    run_config.store(config(horizon=8), step.parent)
    assert told(step, config())["action_horizon"] == 6


def test_a_config_of_another_name_must_mean_the_same(home):
    step = trained(home, config(horizon=6, base_camera="cam_low"))
    same = config(name="mine", horizon=6, base_camera="cam_low", repo_id="my/data")
    assert told(step, same)["action_horizon"] == 6
    with pytest.raises(UserError) as failure:
        told(step, config(name="mine"))
    assert str(failure.value) == (
        f"{step}: trained with config 'tiny_realman', found config 'mine', which contradicts it (model.action_horizon 6 "
        "instead of 10, data.base_camera 'cam_low' instead of 'cam_high'). Use the config 'tiny_realman'"
    )
    with pytest.raises(UserError, match="found config 'pi0_aloha_sim', which does not fit"):
        told(step, _config.get_config("pi0_aloha_sim"))


def test_the_prompt_of_the_training_is_announced_unless_the_server_has_its_own(home):
    step = trained(home, config(default_prompt="wave"))
    assert policy_config.trained_settings(config(), step).train_config.data.default_prompt == "wave"
    own = policy_config.trained_settings(config(default_prompt="fold"), step)
    assert own.train_config.data.default_prompt == "fold"


def test_statistics_are_applied_as_in_training_and_found_by_their_own_name(home):
    step = trained(home, config(repo_id="realman/dual_arm"))
    edit(step, normalization="quantiles")
    settings = policy_config.trained_settings(config(repo_id="my/other"), step)
    assert settings.data_config.use_quantile_norm
    assert settings.data_config.asset_id == "realman/dual_arm"


def edit(step, **changes):
    path = step / "assets" / step_settings.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "not JSON": (lambda step: (step / "assets/settings.json").write_text("{"), "not the settings of a step"),
    "another file": (lambda step: (step / "assets/settings.json").write_text("[]"), "not the settings of a step"),
    "another format": (lambda step: edit(step, format="x"), "found format 'x'"),
    "the future": (lambda step: edit(step, version=2), "found version 2, expected at most 1. Update this program"),
    "no model": (lambda step: edit(step, model=None), "'model' is None"),
    "no scale": (lambda step: edit(step, normalization="minmax"), "'normalization' is 'minmax'"),
    "a rate of zero": (lambda step: edit(step, fps=0), "'fps' is 0, expected a positive number"),
    "a rate that is none": (lambda step: edit(step, fps=float("nan")), "'fps' is nan"),
    "a rate in words": (lambda step: edit(step, fps="50"), "'fps' is '50'"),
    "a rate beyond all": (lambda step: edit(step, fps=10**400), "'fps' is 1000"),
    "nesting without end": (
        lambda step: (step / "assets/settings.json").write_text("[" * 9999),
        "not the settings of a step",
    ),
    "a way out": (lambda step: edit(step, asset_id="../../other"), "'asset_id' names '../../other', outside the step"),
    "deltas in words": (
        lambda step: edit(step, data={"use_delta_joint_actions": "false"}),
        "data.use_delta_joint_actions is 'false', expected true or false",
    ),
    "deltas as a number": (lambda step: edit(step, data={"use_delta_joint_actions": 1}), "expected true or false"),
    "deltas left open": (lambda step: edit(step, data={"use_delta_joint_actions": None}), "expected true or false"),
    "deltas as a table": (lambda step: edit(step, data={"use_delta_joint_actions": {}}), "expected true or false"),
    "steps without end": (lambda step: edit(step, model={"action_horizon": 10**400}), "action_horizon"),
    "an order as a list": (lambda step: edit(step, data={"arm_order": [None]}), "expected a text"),
    "half a step": (lambda step: edit(step, model={"action_horizon": 9.5}), "expected a whole number"),
    "an order as a number": (lambda step: edit(step, data={"arm_order": 1}), "expected a text"),
    "an unknown setting": (lambda step: edit(step, data={"mirrored": True}), "data has no 'mirrored'"),
    "an unknown order": (lambda step: edit(step, data={"arm_order": "up"}), "expected one of"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_settings_are_no_reason_to_guess(home, kind):
    harm, message = DAMAGE[kind]
    step = trained(home, config())
    harm(step)
    with pytest.raises(UserError, match=message) as failure:
        told(step, config())
    assert "\n" not in str(failure.value)


def test_the_statistics_stay_where_the_original_project_looks(home):
    step = trained(home, config())
    assert {path.relative_to(step / "assets").as_posix() for path in (step / "assets").rglob("*.json")} == {
        "settings.json",
        "realman/dual_arm/norm_stats.json",
        "realman/dual_arm/norm_stats.provenance.json",
    }
    assert str(home) not in (step / "assets/settings.json").read_text()
