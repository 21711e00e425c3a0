"""The checks before a run compiles or overwrites anything: base weights, and the statistics of a resumed run."""

import dataclasses
import pathlib
import re
import shutil

import jax
import orbax.checkpoint as ocp
import pytest

from openpi.models import gemma_config
from openpi.shared import errors
from openpi.training import config as _config
from openpi.training import sharding
from openpi.training.host import run_lock
from openpi.training.run import train_loop
from openpi.training.stats import norm_stats
from openpi.training.step import checkpoint_tree
from openpi.training.step import step_program
from openpi.training.step import train_state
from openpi.training.weight_loaders import CheckpointWeightLoader


@pytest.fixture
def compiles(monkeypatch) -> list[str]:
    """The names of the configs that reached the compiler. None is compiled."""
    names = []

    def note(config, *_):
        names.append(config.name)
        raise errors.UserError("would be compiled now")

    monkeypatch.setattr(step_program, "compile_step", note)
    return names


def debug_config(folder: pathlib.Path, model, **fields):
    fields = {"model": model, "checkpoint_base_dir": str(folder / "checkpoints"), "overwrite": True} | fields
    return dataclasses.replace(_config.get_config("debug"), **fields)


def write_params(folder: pathlib.Path, model) -> pathlib.Path:
    """Write the `params` folder of a checkpoint with random parameters and return it."""
    state = train_state.init_train_state(debug_config(folder, model), jax.random.key(0), sharding.make_mesh(1))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", checkpoint_tree.to_disk(state)[0])
    return folder / "params"


@pytest.fixture
def older_run(tmp_path) -> pathlib.Path:
    """A file in the run's folder that --overwrite would delete."""
    path = tmp_path / "checkpoints/debug/debug/7/kept"
    path.parent.mkdir(parents=True)
    path.write_text("older")
    return path


def refusal(config) -> str:
    with pytest.raises(errors.UserError) as info:
        train_loop.train(config)
    return str(info.value)


def test_missing_base_weights_are_reported_before_anything_is_compiled(tiny_model, tmp_path, older_run, compiles):
    loader = CheckpointWeightLoader(str(tmp_path / "none/params"))
    assert "none/params: no such file or folder" in refusal(debug_config(tmp_path, tiny_model, weight_loader=loader))
    assert compiles == []
    assert older_run.exists()


def test_base_weights_of_another_model_are_reported_before_anything_is_compiled(
    tiny_model, tmp_path, older_run, compiles
):
    wider = dataclasses.replace(tiny_model, action_dim=16)
    loader = CheckpointWeightLoader(str(write_params(tmp_path, wider)))
    message = refusal(debug_config(tmp_path, tiny_model, weight_loader=loader))
    assert "params: does not fit the model (" in message
    assert "'action_in_proj/kernel': found (16, 32), expected (32, 32)" in message
    assert compiles == []
    assert older_run.exists()
    # Weights of the right model pass this check.
    assert refusal(debug_config(tmp_path, wider, weight_loader=loader)) == "would be compiled now"


def test_a_folder_without_parameters_is_reported_before_anything_is_compiled(tiny_model, tmp_path, older_run, compiles):
    write_params(tmp_path, tiny_model)
    for folder in (tmp_path, older_run.parent):
        message = refusal(debug_config(tmp_path, tiny_model, weight_loader=CheckpointWeightLoader(str(folder))))
        assert message.startswith(f"{folder}: ")
        assert "checkpoint" in message or "expected the 'params' folder of a step" in message
    assert compiles == []


@dataclasses.dataclass(frozen=True)
class HalfLoader:
    """A user's own loader that leaves out some parameters."""

    def load(self, params):
        return {key: value for key, value in params.items() if key != "action_in_proj"}


def test_an_incomplete_custom_loader_is_refused_before_the_old_run_is_deleted(tiny_model, tmp_path, older_run):
    message = refusal(debug_config(tmp_path, tiny_model, weight_loader=HalfLoader()))
    assert message.startswith(
        "weight loader HalfLoader: returned parameters that do not fit the model (2): 'action_in_proj/"
    )
    assert older_run.exists()


def test_a_model_with_adapters_accepts_base_weights_without_them(tiny_model, tmp_path, compiles):
    loader = CheckpointWeightLoader(str(write_params(tmp_path, tiny_model)))
    adapters = gemma_config.VARIANTS["gemma_2b_lora"].lora_configs
    adapted = dataclasses.replace(tiny_model.paligemma_variant, lora_configs=adapters)
    model = dataclasses.replace(tiny_model, paligemma_variant=adapted)
    assert refusal(debug_config(tmp_path, model, weight_loader=loader)) == "would be compiled now"
    assert compiles == ["debug"]


@pytest.fixture
def saved(home, tiny_model, compiles) -> train_loop.TrainConfig:
    """A config to resume with. Its run has a checkpoint in which only the statistics are real."""
    data = _config.get_config("debug_realman").data
    config = debug_config(home, tiny_model, name="debug_realman", data=data, overwrite=False, resume=True)
    report = norm_stats.compute_norm_stats(config)
    step_dir = config.checkpoint_dir / "3"
    (step_dir / "params").mkdir(parents=True)
    shutil.copytree(report.path.parent, step_dir / "assets/realman/dual_arm")
    return config


def test_a_resumed_run_accepts_the_statistics_that_it_was_trained_with(saved, compiles):
    assert refusal(saved) == "would be compiled now"


def test_statistics_other_than_those_of_the_checkpoint_are_refused_with_the_flag_to_continue(saved, compiles):
    """The dataset is the same, so no other check notices that a minimum range was set in between."""
    norm_stats.compute_norm_stats(saved, min_range=3.0)
    before = {path: path.stat().st_mtime_ns for path in saved.checkpoint_dir.rglob("*")}
    message = refusal(saved)
    stored = saved.checkpoint_dir / "3/assets"
    assert (
        f"assets/debug_realman/realman/dual_arm/norm_stats.json: differs from {stored}/realman/dual_arm/norm_stats"
        in message
    )
    assert "actions std[" in message
    assert compiles == []
    assert before == {path: path.stat().st_mtime_ns for path in saved.checkpoint_dir.rglob("*")}

    flag = f"--data.assets.assets-dir {stored}"
    assert f"add '{flag}'" in message
    assets = dataclasses.replace(saved.data.assets, assets_dir=str(stored))
    data = dataclasses.replace(saved.data, assets=assets)
    assert refusal(dataclasses.replace(saved, data=data)) == "would be compiled now"
    # A new run may use the new statistics.
    assert refusal(dataclasses.replace(saved, resume=False, overwrite=True)) == "would be compiled now"


@pytest.mark.parametrize("place", ["/proc/checkpoints", "file/below", "file"])
def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_compiled(tiny_model, tmp_path, compiles, place):
    (tmp_path / "file").touch()
    folder = tmp_path / place
    message = refusal(debug_config(tmp_path, tiny_model, checkpoint_base_dir=str(folder)))
    assert re.match(
        r"/.*/debug/debug: cannot be written \(.+\)\. Choose another folder with --checkpoint-base-dir$", message
    )
    assert compiles == []
    # The remedy helps.
    assert refusal(debug_config(tmp_path, tiny_model)) == "would be compiled now"
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("flags", [{"overwrite": True}, {"overwrite": False, "resume": True}], ids=str)
def test_a_run_that_another_process_trains_is_left_alone(tiny_model, tmp_path, older_run, compiles, flags):
    config = debug_config(tmp_path, tiny_model, **flags)
    other = run_lock.RunLock(config.checkpoint_dir)
    other.take()
    message = refusal(config)
    assert message.startswith(f"{config.checkpoint_dir}: process ")
    assert "trains this run. Wait for it or stop it, or choose another --exp-name" in message
    assert older_run.exists()
    # Both remedies help.
    assert refusal(dataclasses.replace(config, exp_name="other")) == "would be compiled now"
    other.release()
    assert refusal(config) == "would be compiled now"
    assert not (config.checkpoint_dir / run_lock.FILE_NAME).exists()


def test_statistics_that_could_not_be_written_are_not_computed(tmp_path, home, tiny_model):
    config = dataclasses.replace(_config.get_config("debug_realman"), model=tiny_model, assets_base_dir="/proc/assets")
    with pytest.raises(errors.ConfigError, match=r"^/proc/assets/.*: cannot be written \(.*--assets-base-dir$"):
        norm_stats.compute_norm_stats(config)
