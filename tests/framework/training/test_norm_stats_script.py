"""The command that computes the statistics: its flags, its exit status, and how little it starts."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from openpi.training import config as _config

SCRIPT = pathlib.Path(_config.__file__).parents[3] / "scripts/compute_norm_stats.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("script_compute_norm_stats", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # tyro looks up where the flags are written
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(monkeypatch, script):
    def parse_flags(*flags: str):
        monkeypatch.setattr(sys, "argv", ["compute_norm_stats.py", *flags])
        return script.parse()

    return parse_flags


def test_the_flags_are_those_of_the_original_and_a_few_more(parse):
    args = parse("--config-name", "pi0_aloha_sim")
    assert (args.config_name, args.max_frames, args.repo_id, args.min_range) == ("pi0_aloha_sim", None, None, 0.0)
    assert args == parse("--config_name", "pi0_aloha_sim")
    assert parse("--config-name", "x", "--max-frames", "7").max_frames == 7
    ours = parse(
        "--config-name", "x", "--repo-id", "me/towels", "--min-range", "0.05", "--data.arm-order", "left_right"
    )
    assert (ours.repo_id, ours.min_range, ours.flags) == ("me/towels", 0.05, ("--data.arm-order", "left_right"))


@pytest.mark.parametrize("flags", [[], ["--config-name", "debug_realman", "--max-frames", "many"]])
def test_wrong_use_exits_with_status_2(parse, flags, capsys):
    with pytest.raises(SystemExit) as failure:
        parse(*flags)
    assert failure.value.code == 2
    assert capsys.readouterr().err


def test_a_flag_that_is_neither_the_scripts_nor_the_configs_is_refused(home, script, capsys):
    with pytest.raises(SystemExit) as failure:
        script.main("debug_realman", flags=("--max-frmes", "3"))
    assert failure.value.code == 2
    assert "--max-frmes" in capsys.readouterr().err
    assert not (home / "assets").exists()


def test_the_command_starts_no_accelerator_and_loads_neither_checkpoints_nor_scipy(home):
    """They took a third of its time; a platform that does not exist ends whoever asks JAX for a device."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "--config-name", "debug_realman", "--max-frames", "9"],
        env={**os.environ, "JAX_PLATFORMS": "no_such_platform"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(pathlib.Path(done.stdout.strip()).read_text())["norm_stats"].keys() == {"state", "actions"}
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "openpi.training.stats.norm_stats" in loaded
    assert not loaded & {"orbax", "scipy", "scipy.fft", "matplotlib", "openpi.models.pi0"}
