"""The config that is stored with a run, and its check on resume."""

import dataclasses
import json

import pytest

from openpi.shared import errors
from openpi.training import config as _config
from openpi.training.optimizer import CosineDecaySchedule
from openpi.training.run import run_config


def stored(config, directory):
    return json.loads(run_config.store(config, directory).read_text())


@pytest.mark.parametrize("config", _config.all_configs().values(), ids=lambda config: config.name)
def test_every_config_can_be_stored_and_equals_itself(config, tmp_path):
    text = stored(config, tmp_path)
    assert text["config"]["name"] == config.name
    assert text["changes"] == []
    assert "jax" in text["versions"]
    assert "0x" not in json.dumps(text["config"])  # no addresses of objects, which differ in every process
    run_config.check_resume(config, tmp_path)


def test_allowed_changes_are_logged_and_stored_with_their_step(tmp_path, caplog):
    config = _config.get_config("pi0_realman")
    run_config.store(config, tmp_path)
    lower = dataclasses.replace(
        config, batch_size=16, resume=True, lr_schedule=CosineDecaySchedule(peak_lr=1e-5), num_workers=7
    )
    run_config.check_resume(lower, tmp_path)
    assert "lr_schedule.peak_lr: 2.5e-05 -> 1e-05" in caplog.text
    assert "batch_size: 32 -> 16" in caplog.text
    assert "resume" not in caplog.text
    run_config.store(lower, tmp_path, step=300)
    (change,) = json.loads((tmp_path / run_config.FILE_NAME).read_text())["changes"]
    assert change["step"] == 300
    assert set(change["changed"]) == {"batch_size", "lr_schedule.peak_lr", "num_workers"}


def test_a_resume_may_change_whether_images_are_kept(tmp_path):
    config = _config.get_config("pi0_realman")
    run_config.store(config, tmp_path)
    run_config.check_resume(
        dataclasses.replace(config, data=dataclasses.replace(config.data, keep_images=False)), tmp_path
    )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.action_horizon", 25, "model.action_horizon: 50 -> 25"),
        ("data.repo_id", "realman/other", "data.repo_id: realman/dual_arm -> realman/other"),
        ("freeze_image_tower", True, "freeze_image_tower: False -> True"),
    ],
)
def test_fields_that_give_parameters_their_meaning_may_not_change(tmp_path, field, value, words):
    config = _config.get_config("pi0_realman")
    run_config.store(config, tmp_path)
    part, _, name = field.partition(".")
    value = dataclasses.replace(getattr(config, part), **{name: value}) if name else value
    with pytest.raises(errors.ConfigError, match="started with another config") as info:
        run_config.check_resume(dataclasses.replace(config, **{part: value}), tmp_path)
    assert words in str(info.value)


def test_a_run_of_an_older_program_can_be_resumed(tmp_path):
    run_config.check_resume(_config.get_config("pi0_realman"), tmp_path)


@pytest.mark.parametrize("damaged", [b"", b"half a fi", b"[]", b'{"config": 3}', b"\xff\xfe{}"])
def test_a_damaged_config_is_one_line_and_deleting_it_helps(tmp_path, damaged):
    config = _config.get_config("debug_realman")
    path = run_config.store(config, tmp_path)
    path.write_bytes(damaged)
    for act in (run_config.check_resume, run_config.store):
        with pytest.raises(errors.DataError, match=r"config\.json: not the config of a run .*Delete it") as info:
            act(config, tmp_path)
        assert "\n" not in str(info.value)
    path.unlink()
    run_config.check_resume(config, tmp_path)
    assert stored(config, tmp_path)["changes"] == []
