"""Whole training runs with a tiny model: files, exact resumes, signals, and messages for bad input."""

import csv
import dataclasses
import errno
import json
import os
import pathlib
import pickle
import resource
import runpy
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.policies import checkpoint_folder
from openpi.shared import errors
from openpi.training import checkpoints
from openpi.training import config as _config
from openpi.training import weight_loaders
from openpi.training.host import free_space
from openpi.training.reports import divergence
from openpi.training.reports import run_log
from openpi.training.reports.divergence import DivergedError
from openpi.training.run import train_loop
from openpi.training.stats import norm_stats
from openpi.training.step import train_step

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
SCRIPTS = pathlib.Path(_config.__file__).parents[3] / "scripts"

SIZE = gemma_config.Config(width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=2048)
MODEL = pi0_config.Pi0Config(
    dtype="float32",
    vision_variant="mu/56",
    paligemma_variant=SIZE,
    action_expert_variant=SIZE,
    action_horizon=6,
    max_token_len=8,
)


def debug_config(folder: pathlib.Path, **overrides):
    """Return the registered debug config with a tiny model instead of the full-size image tower."""
    fields = {
        "model": MODEL,
        "checkpoint_base_dir": str(folder / "checkpoints"),
        "num_train_steps": 4,
        "log_interval": 1,
        "overwrite": False,
    }
    return dataclasses.replace(_config.get_config("debug"), **fields | overrides)


def losses(summary: train_loop.Summary) -> list[float]:
    lines = (summary.checkpoint.parent / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> train_loop.Summary:
    return train_loop.train(debug_config(tmp_path_factory.mktemp("unbroken")))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> train_loop.Summary:
    folder = tmp_path_factory.mktemp("resumed")
    first = train_loop.train(debug_config(folder, num_train_steps=2))
    assert (first.first_step, first.num_steps) == (0, 2)
    assert first.checkpoint.name == "1"
    return train_loop.train(debug_config(folder, resume=True))


def test_a_resumed_run_has_the_losses_of_the_unbroken_one_bit_for_bit(unbroken, resumed):
    assert (resumed.first_step, resumed.num_steps) == (2, 4)
    assert losses(resumed) == losses(unbroken)
    assert len(losses(unbroken)) == 4


def test_a_resumed_run_ends_with_the_parameters_of_the_unbroken_one(unbroken, resumed):
    trees = [
        _model.restore_params(summary.checkpoint / "params", restore_type=np.ndarray) for summary in (unbroken, resumed)
    ]
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_leaves_checkpoint_log_curves_and_views(unbroken):
    run = unbroken.checkpoint.parent
    assert unbroken.checkpoint == run / "3"
    logs = {"train_log.jsonl", "train_log.csv", "curves.png", "camera_views.png", "config.json"}
    assert {path.name for path in run.iterdir()} == {"3", *logs}
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    scalars = {"loss", "grad_norm", "param_norm", "samples_per_s", "loader_wait", "learning_rate", "memory_gib"}
    assert lines[0].keys() == {"step", *scalars}
    with (run / "train_log.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == lines
    assert unbroken.first_loss == losses(unbroken)[0]
    assert unbroken.last_loss == losses(unbroken)[-1]
    assert unbroken.stop_signal is None


def test_an_existing_run_is_left_alone_without_a_flag(unbroken):
    run = unbroken.checkpoint.parent
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(checkpoints.CheckpointExistsError):
        train_loop.train(debug_config(run.parents[2]))
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_missing_weights_do_not_delete_the_older_run(unbroken, tmp_path):
    run = unbroken.checkpoint.parent
    config = debug_config(
        run.parents[2], overwrite=True, weight_loader=weight_loaders.CheckpointWeightLoader(str(tmp_path / "none"))
    )
    with pytest.raises(FileNotFoundError, match="none"):
        train_loop.train(config)
    assert (unbroken.checkpoint / "params").is_dir()


def test_a_finished_run_says_so_when_it_is_resumed(unbroken):
    with pytest.raises(errors.ConfigError, match=r"has done all its 4 steps\. Raise --num-train-steps"):
        train_loop.train(debug_config(unbroken.checkpoint.parents[3], resume=True))


def test_a_signal_saves_and_exits_and_the_run_can_be_resumed(unbroken, tmp_path, monkeypatch):
    def send_after_two_steps(self, number, *args):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        add(self, number, *args)

    add = train_loop.StepMeter.add
    monkeypatch.setattr(train_loop.StepMeter, "add", send_after_two_steps)
    stopped = train_loop.train(debug_config(tmp_path))
    assert stopped.stop_signal == signal.SIGTERM
    assert stopped.checkpoint.name == "1"
    assert (stopped.checkpoint / "params").is_dir()
    monkeypatch.setattr(train_loop.StepMeter, "add", add)
    assert losses(train_loop.train(debug_config(tmp_path, resume=True))) == losses(unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_script_saves_and_its_exit_status_shows_the_signal(tmp_path, monkeypatch, capsys, number):
    def send_after_one_step(self, *args):
        os.kill(os.getpid(), number)
        add(self, *args)

    add = train_loop.StepMeter.add
    monkeypatch.setattr(train_loop.StepMeter, "add", send_after_one_step)
    main = runpy.run_path(str(SCRIPTS / "train.py"))["main"]
    assert main(debug_config(tmp_path)) == 128 + number
    saved = tmp_path / "checkpoints/debug/debug/0"
    assert capsys.readouterr().out == f"{saved}\n"
    assert (saved / "params").is_dir()


KILLED_RUN = """
import os, pickle, signal, sys
from openpi.shared import compile_cache
from openpi.training.run import train_loop
compile_cache.enable(sys.argv[2])
add = train_loop.StepMeter.add
def add_and_die(self, step, *args):
    add(self, step, *args)
    if step == 2:  # while the checkpoint of step 1 may be half written
        os.kill(os.getpid(), signal.SIGKILL)
train_loop.StepMeter.add = add_and_die
train_loop.train(pickle.load(open(sys.argv[1], "rb")))
"""


def test_a_run_that_was_killed_has_the_losses_of_the_unbroken_one_bit_for_bit(unbroken, tmp_path):
    config = debug_config(tmp_path, save_interval=1)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    command = [sys.executable, "-c", KILLED_RUN, tmp_path / "config.pickle", jax.config.jax_compilation_cache_dir or ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "checkpoints/debug/debug/3").exists()
    resumed = train_loop.train(dataclasses.replace(config, resume=True))
    assert losses(resumed) == losses(unbroken)


# The writing thread of orbax reports to an event loop that the error has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_during_a_save_ends_the_run_and_the_last_checkpoint_can_be_resumed(
    unbroken, tmp_path, monkeypatch
):
    """A limit on the file size stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_without_room(manager, state, data_config, loader_state, step, **options):
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        save(manager, state, data_config, loader_state, step, **options)

    save = checkpoints.save_state
    monkeypatch.setattr(checkpoints, "save_state", save_without_room)
    config = debug_config(tmp_path, save_interval=1)
    try:
        with pytest.raises(free_space.DiskFullError, match=r"the disk is full.*continue with --resume"):
            train_loop.train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = tmp_path / "checkpoints/debug/debug"
    assert [path.name for path in run.iterdir() if path.name.isdecimal()] == ["1"]
    monkeypatch.setattr(checkpoints, "save_state", save)
    resumed = train_loop.train(dataclasses.replace(config, resume=True))
    assert resumed.first_step == 2
    assert losses(resumed) == losses(unbroken)


def test_a_diverging_run_stops_and_keeps_the_last_checkpoint_and_the_batch(tmp_path, monkeypatch, capsys):
    settle = train_loop.StepMeter.settle

    def diverge(self):
        if self._pending is not None and self._pending[0] == 3:
            self._pending = (3, dict.fromkeys(train_step.METRICS, float("nan")), self._pending[2])
        settle(self)

    monkeypatch.setattr(train_loop.StepMeter, "settle", diverge)
    with pytest.raises(DivergedError, match=r"step 3: loss nan.*largest of actions is") as info:
        train_loop.train(debug_config(tmp_path, save_interval=2))
    run = tmp_path / "checkpoints/debug/debug"
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["2"]
    kept = run / "diverged_step_3.npz"
    assert str(kept) in str(info.value)
    with np.load(kept) as batch:
        assert batch["actions"].shape == (2, 6, 32)
        assert batch["image/base_0_rgb"].shape == (2, 224, 224, 3)
    assert divergence.main(kept) == 0
    assert "not finite" in capsys.readouterr().out


@pytest.mark.slow
def test_a_disk_that_takes_no_reports_costs_neither_the_run_nor_its_reason(tmp_path, monkeypatch, caplog):
    """Every report and the batch of a diverged step meet a full disk. The checkpoints do not."""

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("_append", "_rewrite"):
        monkeypatch.setattr(run_log.Table, name, refuse)
    monkeypatch.setattr(run_log.RunLog, "draw_curves", refuse)
    monkeypatch.setattr(run_log, "save_camera_views", refuse)
    monkeypatch.setattr(divergence, "save_batch", refuse)
    summary = train_loop.train(debug_config(tmp_path, save_interval=2))
    assert (summary.checkpoint / "params").is_dir()
    assert caplog.text.count("curves.png: could not be written (") == 1
    assert caplog.text.count("the log of training: could not be written (") == 1
    # A run that diverges says why, although its batch cannot be kept.
    monkeypatch.setattr(train_loop.StepMeter, "settle", lambda self: raise_diverged(self._pending))
    with pytest.raises(DivergedError, match=r"step 0: loss nan\. .*could not be written \(No space left on device\)"):
        train_loop.train(debug_config(tmp_path, exp_name="other"))


def raise_diverged(pending):
    if pending:
        raise DivergedError(pending[0], "loss nan", pending[2])


def test_a_realman_run_stores_its_statistics_next_to_the_parameters(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "lerobot_v21_image", tmp_path / "data/lerobot/realman/dual_arm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    # Everything else is as in the debug config, so that the compiled program is the same.
    data = _config.get_config("debug_realman").data
    config = debug_config(tmp_path, name="debug_realman", data=data, num_train_steps=1)
    report = norm_stats.compute_norm_stats(config)
    summary = train_loop.train(config)
    stored = summary.checkpoint / "assets/realman/dual_arm/norm_stats.json"
    assert stored.read_text() == report.path.read_text()
    assert checkpoint_folder.rtc_max_delay(summary.checkpoint) == 0


def run_script(monkeypatch, folder: pathlib.Path, *args: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    with pytest.raises(SystemExit) as info:
        runpy.run_path(str(SCRIPTS / "train.py"), run_name="__main__")
    return info.value.code


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["debug_realman", "--exp-name", "x"], "make norm-stats CONFIG=debug_realman"),
        (["debug_realman", "--exp-name", "x", "--fsdp-devices", "7"], "cannot be split into groups of 7"),
        (["debug_realmna", "--exp-name", "x"], "Did you mean 'debug_realman'?"),
    ],
)
def test_bad_input_is_one_line_with_status_1_and_changes_nothing(monkeypatch, tmp_path, capfd, args, words):
    assert run_script(monkeypatch, tmp_path, *args) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if words in line]
    assert len(lines) == 1
    assert list(tmp_path.iterdir()) == []


def test_flags_that_exclude_each_other_are_explained_with_status_2(monkeypatch, tmp_path, capfd):
    assert run_script(monkeypatch, tmp_path, "debug", "--resume", "--overwrite") == 2
    assert "exclude" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dataset_is_named_once_statistics_exist(monkeypatch, tmp_path, capfd):
    vector = [0.0] * 14
    stats = {"mean": vector, "std": [1.0] * 14, "q01": vector, "q99": vector}
    assets = tmp_path / "assets/debug_realman/realman/dual_arm"
    assets.mkdir(parents=True)
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": {"state": stats, "actions": stats}}))
    assert run_script(monkeypatch, tmp_path, "debug_realman", "--exp-name", "x") == 1
    assert "make convert DATA=<recordings> REPO_ID=realman/dual_arm" in capfd.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
