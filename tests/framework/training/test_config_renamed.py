"""Fields of configs that had another name in an earlier release: stored runs and old flags still work."""

import json
import sys

import pytest

from openpi.policies import run_settings
from openpi.training import config as _config
from openpi.training.configs import renamed
from openpi.training.run import run_config

FORMER = {name: former for former, name in renamed.RENAMED_FIELDS.items()}


def with_former_names(stored):
    """A stored config as an earlier release wrote it."""
    if not isinstance(stored, dict):
        return stored
    return {FORMER.get(key, key): with_former_names(value) for key, value in stored.items()}


# A config with a `base_config` stores the field twice, at two depths.
@pytest.mark.parametrize("name", ["pi0_realman", "pi0_libero"])
def test_a_run_stored_under_the_former_names_is_resumed_and_served(name, tmp_path, caplog):
    config = _config.get_config(name)
    path = run_config.store(config, tmp_path)
    text = json.dumps(with_former_names(json.loads(path.read_text())))
    assert "keep_pictures" in text
    assert "keep_images" not in text
    path.write_text(text)
    run_config.check_resume(config, tmp_path)
    assert run_settings.as_trained(config, tmp_path / "7") == config
    assert not caplog.text


@pytest.mark.parametrize(
    ("former", "today", "value"),
    [
        ("--data.keep-pictures", "--data.keep-images", True),
        ("--data.no-keep-pictures", "--data.no-keep-images", False),
        ("--data.no_keep_pictures", "--data.no_keep-images", False),
    ],
)
def test_a_former_flag_works_and_names_its_new_name(monkeypatch, caplog, former, today, value):
    flags = ["--exp-name", "x", former]
    assert _config.with_flags(_config.get_config("pi0_realman"), flags).data.keep_images is value
    assert f"{former} is now called {today}" in caplog.text
    monkeypatch.setattr(sys, "argv", ["train.py", "pi0_realman", *flags])
    assert _config.cli().data.keep_images is value


def test_other_words_of_a_command_line_stay_as_they_are(caplog):
    words = ["pi0_realman", "--data.default-prompt", "keep-pictures", "--data.keep-images", "--x.keep-pictures-here"]
    assert renamed.rename_flags(words) == words
    assert not caplog.text
