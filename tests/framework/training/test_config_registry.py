"""The registry of training configs: names, import orders, the command line, and what a wrong value says."""

import dataclasses
import json
import pathlib
import pickle
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tyro

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.policies import realman_policy
from openpi.shared import errors
from openpi.training import config as _config
from openpi.training.configs import train_config
from openpi.training.misc import realman_config
import openpi.transforms as _transforms

FAMILIES = ("pi0", "pi05", "pi0_fast")
REALMAN_NAMES = (*(f"{family}_realman{kind}" for family in FAMILIES for kind in ("", "_lora")), "debug_realman")
ROBOT_NAMES = (
    *("pi0_aloha", "pi05_aloha", "pi0_aloha_towel", "pi0_aloha_tupperware", "pi0_aloha_sim"),
    *(
        "pi0_aloha_pen_uncap",
        "pi05_aloha_pen_uncap",
        "pi0_droid",
        "pi0_fast_droid",
        "pi05_droid",
        "pi05_droid_finetune",
    ),
    *("pi0_libero", "pi0_fast_libero", "pi05_libero", "pi0_libero_low_mem_finetune"),
    "pi0_fast_libero_low_mem_finetune",
)
ALL_NAMES = ("debug", "debug_restore", "debug_pi05", *ROBOT_NAMES, *REALMAN_NAMES)


def parse(monkeypatch, *args: str) -> train_config.TrainConfig:
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    return _config.cli()


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_config_is_found_by_its_name(name):
    assert _config.get_config(name).name == name


def test_a_typo_names_the_nearest_config():
    with pytest.raises(errors.ConfigError, match=r"config 'pi0_realmna' not found. Did you mean 'pi0_realman'\?"):
        _config.get_config("pi0_realmna")


def test_a_typo_on_the_command_line_names_the_nearest_config_too(monkeypatch):
    with pytest.raises(errors.ConfigError, match=r"Did you mean 'debug_realman'\?"):
        parse(monkeypatch, "debug_realmn", "--exp-name", "x")


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_config_survives_pickling_and_builds_its_data_config(name):
    config = _config.get_config(name)
    assert pickle.loads(pickle.dumps(config)) == config
    assert isinstance(config.data.create(None, config.model), _config.DataConfig)


IMPORT_ORDERS = {
    "the registry first": "import openpi.training.config",
    "the robot's configs first": "import openpi.training.misc.realman_config",
    "the policy first": "import openpi.policies.realman_policy, openpi.training.config",
    "the leaf modules first": "import openpi.training.configs.train_config, openpi.training.misc.realman_config",
    "the training script first": "import scripts.train",
}


# Runs every statement with all of the project's modules forgotten, the large libraries kept.
FRESH_IMPORTS = """
import json, sys
failed = {}
for name, statement in json.loads(sys.argv[1]).items():
    for module in [m for m in sys.modules if m.split('.')[0] in ('openpi', 'openpi_client', 'scripts')]:
        del sys.modules[module]
    try:
        exec(statement, {})
        import openpi.training.config as config
        assert config.get_config('pi05_realman').name == 'pi05_realman'
        assert type(config.get_config('pi05_realman').data).__mro__[1] is config.DataConfigFactory
    except Exception as e:
        failed[name] = repr(e)
print(json.dumps(failed))
"""


def test_the_registry_is_complete_after_any_import_order():
    folder = pathlib.Path(_config.__file__).parents[3]
    command = [sys.executable, "-c", FRESH_IMPORTS, json.dumps(IMPORT_ORDERS)]
    done = subprocess.run(command, check=True, cwd=folder, timeout=200, stdout=subprocess.PIPE, text=True)
    assert json.loads(done.stdout) == {}


def test_no_other_config_is_registered():
    assert sorted(_config.all_configs()) == sorted(ALL_NAMES)
    assert [config.name for config in _config.all_configs().values()] == list(_config.all_configs())


def test_two_configs_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(realman_config, "get_realman_configs", lambda: [_config.get_config("debug")])
    with pytest.raises(ValueError, match="two training configs are named 'debug'"):
        _config.all_configs.__wrapped__()


ROBOT_SAMPLES = {
    "pi0_aloha_pen_uncap": {
        **{f"observation.images.cam_{name}": "image" for name in ("high", "left_wrist", "right_wrist")},
        "observation.state": 14,
        "action": (50, 14),
    },
    "pi0_libero": {"image": "image", "wrist_image": "image", "state": 8, "actions": (50, 7), "prompt": "text"},
    "pi05_droid_finetune": {
        "exterior_image_1_left": "image",
        "wrist_image_left": "image",
        "prompt": "text",
        "joint_position": 7,
        "gripper_position": 1,
        "actions": (16, 8),
    },
}


@pytest.mark.parametrize("name", ROBOT_SAMPLES)
def test_the_other_robots_samples_pass_their_transforms(name):
    """A stored frame in, the model's slots, state and delta actions out; then all that the model itself wants."""
    config = _config.get_config(name)
    # A small vocabulary has a tokenizer that needs no download.
    size = dataclasses.replace(gemma_config.get_config("dummy"), vocab_size=512)
    model = dataclasses.replace(config.model, paligemma_variant=size, max_token_len=100)
    data = config.data.create(None, model)
    kinds = {"image": np.zeros((3, 4, 4), np.uint8), "text": "go"}
    sample = {key: kinds[kind] if kind in kinds else np.full(kind, 0.5) for key, kind in ROBOT_SAMPLES[name].items()}
    done = _transforms.compose([*data.repack_transforms.inputs, *data.data_transforms.inputs])(sample)
    # One arm has one wrist: nothing is computed for the slot of the other.
    num_cameras = 3 if name == "pi0_aloha_pen_uncap" else 2
    assert list(done["image"]) == list(_model.IMAGE_KEYS)[:num_cameras]
    assert [bool(done["image_mask"][key]) for key in _model.IMAGE_KEYS] == [True, True, num_cameras == 3]
    assert done["state"].shape == (ROBOT_SAMPLES[name].get("observation.state", 8),)
    assert done["actions"].shape[0] == config.model.action_horizon
    if name == "pi0_libero":
        np.testing.assert_array_equal(done["actions"][0], [0, 0, 0, 0, 0, 0, 0.5])

    inputs = _transforms.compose(data.model_transforms.inputs)(done)
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], inputs)
    observation = _model.preprocess_observation(None, _model.Observation.from_dict(batch))
    assert list(observation.images) == list(done["image"])
    assert {image.shape for image in observation.images.values()} == {(1, 224, 224, 3)}
    assert observation.tokenized_prompt_mask.any()
    assert (observation.state.shape[-1], batch["actions"].shape[-1]) == (32, 32)


def test_the_documented_flags_override_a_config(monkeypatch):
    config = parse(
        monkeypatch,
        "pi0_realman",
        *("--exp-name", "mine", "--batch_size", "8", "--no-wandb-enabled", "--ema-decay", "None"),
        *("--data.repo-id", "me/towels", "--data.no-use-delta-joint-actions", "--data.assets.asset-id", "towels"),
        *("--model.paligemma-variant", "dummy", "--weight-loader.params-path", "/w", "--lr-schedule.peak-lr", "1e-4"),
        *("--optimizer.clip-gradient-norm", "0.5", "--fsdp-devices", "2", "--keep-period", "None", "--resume"),
    )
    assert (config.exp_name, config.batch_size, config.wandb_enabled, config.ema_decay) == ("mine", 8, False, None)
    assert (config.data.repo_id, config.data.use_delta_joint_actions) == ("me/towels", False)
    assert config.data.assets.asset_id == "towels"
    assert config.model.paligemma_variant == "dummy"
    assert config.weight_loader.params_path == "/w"
    assert (config.lr_schedule.peak_lr, config.optimizer.clip_gradient_norm) == (1e-4, 0.5)
    assert (config.fsdp_devices, config.keep_period, config.resume) == (2, None, True)


# Every flag of the original's training script, of the sub-command pi0_aloha.
TRAINING_FLAGS = """
--project-name --exp-name --pytorch-weight-path --pytorch-training-precision --ema-decay --assets-base-dir --checkpoint-base-dir
--seed --batch-size --num-workers --num-train-steps --log-interval --save-interval --keep-period --overwrite --no-overwrite
--resume --no-resume --wandb-enabled --no-wandb-enabled --fsdp-devices --model.action-dim --model.action-horizon
--model.max-token-len --model.dtype --model.paligemma-variant --model.action-expert-variant --model.pi05 --model.no-pi05
--model.discrete-state-input --model.no-discrete-state-input --model.pytorch-compile-mode --lr-schedule.warmup-steps
--lr-schedule.peak-lr --lr-schedule.decay-steps --lr-schedule.decay-lr --optimizer.b1 --optimizer.b2 --optimizer.eps
--optimizer.weight-decay --optimizer.clip-gradient-norm --data.repo-id --data.use-delta-joint-actions
--data.no-use-delta-joint-actions --data.default-prompt --data.adapt-to-pi --data.no-adapt-to-pi --data.action-sequence-keys
--data.assets.assets-dir --data.assets.asset-id
"""


def test_every_flag_of_the_originals_training_script_is_taken(monkeypatch, capsys):
    with pytest.raises(SystemExit) as info:
        parse(monkeypatch, "pi0_aloha", "--help")
    assert info.value.code == 0
    offered = set(re.findall(r"--[a-z0-9.-]+", capsys.readouterr().out))
    assert not set(TRAINING_FLAGS.split()) - offered
    for flag in ("--name", "--freeze-filter", "--policy-metadata", "--data.repack-transforms", "--data.base-config"):
        assert not [name for name in offered if name.startswith(flag)], "the original does not let it be set"


def test_every_flag_of_training_that_the_original_lacks_is_listed_as_ours(monkeypatch, capsys):
    listed = (pathlib.Path(_config.__file__).parents[3] / "VENDOR.md").read_text()
    for name in ("pi0_aloha", "pi0_fast_droid"):
        with pytest.raises(SystemExit):
            parse(monkeypatch, name, "--help")
        offered = set(re.findall(r"--([a-z][a-z0-9.-]+)", capsys.readouterr().out))
        ours = offered - {flag.removeprefix("--") for flag in TRAINING_FLAGS.split()} - {"help"}
        fields = {re.sub(r"^(data|model)\.|\bno-", "", flag).split(".")[0].replace("-", "_") for flag in ours}
        assert "grad_accumulation" in fields
        assert not [field for field in fields if f"`{field}`" not in listed and f".{field}`" not in listed]


def test_the_run_needs_a_name(monkeypatch, capsys):
    with pytest.raises(SystemExit) as info:
        parse(monkeypatch, "pi0_realman")
    assert info.value.code == 2
    assert "--exp-name" in capsys.readouterr().err
    with pytest.raises(errors.ConfigError, match="exp_name is not set"):
        _ = _config.get_config("pi0_realman").checkpoint_dir


def test_folders_follow_from_config_and_run_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(_config.get_config("pi0_realman"), exp_name="first")
    assert config.assets_dirs == tmp_path / "assets" / "pi0_realman"
    assert config.checkpoint_dir == tmp_path / "checkpoints" / "pi0_realman" / "first"


def test_resume_and_overwrite_exclude_each_other():
    with pytest.raises(errors.ConfigError, match="--resume and --overwrite exclude each other"):
        dataclasses.replace(_config.get_config("debug"), resume=True, overwrite=True)


def test_realman_configs_repack_exactly_the_cameras_they_use():
    data = realman_config.LeRobotRealmanDataConfig(base_camera="cam_low")
    created = data.create(None, _config.get_config("debug_realman").model)
    (repack,) = created.repack_transforms.inputs
    assert repack.structure == {
        "images": {
            camera: f"observation.images.{camera}" for camera in ("cam_low", "cam_left_wrist", "cam_right_wrist")
        },
        "state": "observation.state",
        "actions": "action",
        "prompt": "prompt",
    }
    assert created.prompt_from_task
    assert created.action_sequence_keys == ("action",)


@pytest.mark.parametrize(
    ("name", "quantiles"), [("pi0_realman", False), ("pi05_realman", True), ("pi0_fast_realman", True)]
)
def test_pi0_is_normalized_by_moments_and_the_others_by_quantiles(name, quantiles):
    config = _config.get_config(name)
    assert config.data.create(None, config.model).use_quantile_norm is quantiles


def test_pi0_fast_reads_and_writes_actions_as_tokens():
    config = _config.get_config("pi0_fast_realman")
    group = config.data.create(None, config.model).model_transforms
    assert isinstance(group.inputs[-1], _transforms.TokenizeFASTInputs)
    assert (group.outputs[0].action_horizon, group.outputs[0].action_dim) == (50, 14)

    class Spelling:
        def __init__(self, max_len: int, shift: int) -> None:
            self.options = (max_len, shift)

    model = dataclasses.replace(config.model, fast_model_tokenizer=Spelling, fast_model_tokenizer_kwargs={"shift": 3})
    assert config.data.create(None, model).model_transforms.inputs[-1].tokenizer.options == (300, 3)


@pytest.mark.parametrize("use_delta", [True, False])
def test_delta_actions_can_be_switched_off(use_delta):
    config = _config.get_config("debug_realman")
    data = dataclasses.replace(config.data, use_delta_joint_actions=use_delta).create(None, config.model)
    assert len(data.data_transforms.inputs) == len(data.data_transforms.outputs) == (2 if use_delta else 1)
    assert isinstance(data.data_transforms.outputs[-1], realman_policy.RealmanOutputs)


@pytest.mark.parametrize("name", REALMAN_NAMES)
def test_metadata_for_clients_agrees_with_policy_and_model(name):
    config = _config.get_config(name)
    metadata = config.policy_metadata
    assert metadata["robot"] == "realman_rm65_dual"
    assert metadata["dim_names"] == list(realman_policy.DIM_NAMES)
    assert metadata["cameras"] == ["cam_high", "cam_left_wrist", "cam_right_wrist"]
    assert (metadata["action_chunk"], metadata["action_horizon"], metadata["fps"]) == (25, 50, 50)
    assert config.model.action_horizon == metadata["action_horizon"]


def test_low_rank_configs_freeze_the_language_model_and_do_not_average():
    for name in (f"{family}_realman_lora" for family in FAMILIES):
        config = _config.get_config(name)
        frozen = config.freeze_filter
        assert frozen(("PaliGemma", "llm", "layers", "mlp", "linear"), None)
        assert not frozen(("PaliGemma", "llm", "layers", "mlp", "linear_lora_a"), None)
        assert not frozen(("PaliGemma", "img", "head", "kernel"), None)
        assert config.ema_decay is None


def test_statistics_are_looked_up_under_asset_id_and_assets_dir(tmp_path):
    vector = [0.0] * 14
    stats = {"mean": vector, "std": vector, "q01": None, "q99": None}
    (tmp_path / "elsewhere" / "towels").mkdir(parents=True)
    (tmp_path / "elsewhere" / "towels" / "norm_stats.json").write_text(json.dumps({"norm_stats": {"state": stats}}))
    model = _config.get_config("debug_realman").model
    assets = _config.AssetsConfig(assets_dir=str(tmp_path / "elsewhere"), asset_id="towels")
    data = realman_config.LeRobotRealmanDataConfig(assets=assets)
    assert data.create(tmp_path / "assets", model).norm_stats.keys() == {"state"}
    assert data.create(tmp_path / "assets", model).asset_id == "towels"
    assert data.create(None, model).norm_stats is None
    assert realman_config.LeRobotRealmanDataConfig().create(tmp_path / "assets", model).norm_stats is None


@pytest.mark.parametrize(
    ("pi05", "flag", "writes_state"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_state_is_written_into_the_prompt_of_pi05_only(pi05, flag, writes_state):
    model = dataclasses.replace(_config.get_config("debug_realman").model, pi05=pi05, discrete_state_input=flag)
    (tokenize,) = [
        t for t in _config.ModelTransformFactory()(model).inputs if isinstance(t, _transforms.TokenizePrompt)
    ]
    assert tokenize.discrete_state_input == writes_state


def test_a_simple_data_config_applies_its_functions():
    def group(model_config: _model.BaseModelConfig):
        return _config.ModelTransformFactory(default_prompt="tidy up")(model_config)

    model = _config.get_config("debug_realman").model
    data = _config.SimpleDataConfig(repo_id="me/data", data_transforms=group).create(None, model)
    assert data.data_transforms.inputs[0].prompt == "tidy up"
    assert data.repo_id == data.asset_id == "me/data"


def test_a_dataset_is_required_where_none_is_set():
    assert _config.SimpleDataConfig().repo_id is tyro.MISSING
    assert _config.SimpleDataConfig().create(None, _config.get_config("debug_realman").model).repo_id is None
