"""The reports of a run: JSON lines, CSV, curves, TensorBoard files and wandb, and the check of the loss."""

import csv
import dataclasses
import errno
import json
import math
import pathlib
import struct
import sys
import types

import cv2
import jax
import matplotlib.figure
import numpy as np
import pytest

from openpi.shared import errors
from openpi.training import config as _config
from openpi.training.reports import divergence
from openpi.training.reports import run_log
from openpi.training.reports import run_reports
from openpi.training.reports import wandb_log
from openpi.training.reports.step_meter import StepMeter

LINE = {"loss": 1.0, "grad_norm": 1.0, "param_norm": 1.0, "samples_per_s": 1.0, "loader_wait": 0.0}


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_and_json_lines_hold_the_same_rows_also_when_columns_are_added(tmp_path):
    table = run_log.Table(tmp_path / "log.jsonl", 0, writes=True)
    table.append({"step": 0, "a": 1.5})
    table.append({"step": 1, "a": 2.5, "b": 3.0})
    assert read_csv(tmp_path / "log.csv") == [{"step": "0", "a": "1.5", "b": ""}, {"step": "1", "a": "2.5", "b": "3.0"}]
    again = run_log.Table(tmp_path / "log.jsonl", 1, writes=True)
    assert again.rows == [{"step": 0, "a": 1.5}]
    assert read_csv(tmp_path / "log.csv") == [{"step": "0", "a": "1.5"}]


def test_the_incomplete_line_of_a_killed_process_is_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "a": 1.0}\n{"step": 1, "a"')
    assert run_log.Table(tmp_path / "log.jsonl", 9, writes=True).rows == [{"step": 0, "a": 1.0}]


@pytest.mark.parametrize(
    "damaged", [b"half\n", b"[1]\n", b'{"a": 1}\n', b"\xff\n", b'{"step": 0}\n\0\0\n{"step": 1}\n']
)
def test_a_damaged_log_is_one_line_and_deleting_it_helps(tmp_path, damaged):
    path = tmp_path / "log.jsonl"
    path.write_bytes(damaged)
    with pytest.raises(errors.DataError, match=r"log\.jsonl: not a log \(.*\)\. Delete it") as info:
        run_log.Table(path, 9, writes=True)
    assert "\n" not in str(info.value)
    assert path.read_bytes() == damaged
    path.unlink()
    assert run_log.Table(path, 9, writes=True).rows == []


def test_only_one_process_writes(tmp_path):
    log = run_log.RunLog(tmp_path, 0, writes=False)
    log.write(0, LINE)
    log.draw_curves()
    assert len(log.lines) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("validated", [False, True])
def test_curves_have_one_more_panel_with_validation(tmp_path, validated, monkeypatch):
    figures = []
    savefig = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k)),
    )
    log = run_log.RunLog(tmp_path, 0)
    for step in range(4):
        log.write(step, LINE)
        if validated and step % 2:
            log.write_validation(step, {"valid_loss": 0.5, "joint_error_deg": 3.0})
    log.draw_curves()
    axes = figures[0].axes
    assert len(axes) == 3 + validated
    assert len(axes[0].lines) == 1 + validated
    if validated:
        assert axes[-1].get_ylabel() == "error of sampled actions, deg"
        assert axes[-1].get_ylim()[1] > 3.0
    assert axes[0].get_yscale() == "linear"  # there is no power of ten from 0.5 to 1
    assert tmp_path.name in axes[0].get_title()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_curves_are_drawn_for_any_values(tmp_path, value):
    log = run_log.RunLog(tmp_path, 0)
    log.write(0, {**LINE, "loss": value, "grad_norm": value})
    log.write_validation(0, {"valid_loss": value, "joint_error_deg": value})
    assert log.draw_curves().stat().st_size > 1000
    log.write_validation(1, {"valid_loss": 1.0, "joint_error_deg": 3.0})
    log.draw_curves()


def test_camera_views_have_a_named_column_of_untouched_pixels_for_each_slot(tmp_path):
    images = {name: np.full((2, 8, 10, 3), shade, np.float32) for name, shade in (("base", -1.0), ("wrist", 1.0))}
    path = run_log.save_camera_views(tmp_path, types.SimpleNamespace(images=images))
    pixels = cv2.imread(str(path))
    assert pixels.shape == (24 + 2 * (8 + 4), 2 * (10 + 4), 3)
    assert (pixels[24:32, :10] == 0).all()
    assert (pixels[24:32, 14:24] == 255).all()
    assert pixels[:24, :14].min() < 128  # its name


def losses(*values):
    return [{"loss": value, "grad_norm": 1.0, "param_norm": 1.0} for value in values]


def problem(watch, values):
    return next((found for each in values if (found := watch.find_problem(each))), None)


def test_a_loss_that_explodes_is_noticed():
    found = problem(divergence.LossWatch(100.0), losses(*[2.0] * 10, *[0.05] * 40, 600.0))
    assert "more than 100 times the lowest one, 0.05 (--max-loss-growth)" in found


@pytest.mark.parametrize(
    "values",
    [
        [2.0] * 10 + [0.05] * 40 + [2.0],  # one odd batch
        [900.0] + [2.0] * 50,  # a rough start
        [0.05 * 1.02**i for i in range(200)],  # slow growth, 50 times
    ],
)
def test_the_loss_of_a_good_run_is_not_a_problem(values):
    assert problem(divergence.LossWatch(100.0), losses(*values)) is None


def test_growth_can_be_allowed():
    assert problem(divergence.LossWatch(None), losses(*[0.05] * 40, 1e9)) is None
    assert "loss inf" in problem(divergence.LossWatch(None), losses(math.inf))


def test_the_error_carries_the_batch_of_its_step():
    meter = StepMeter(batch_size=1)
    scalars = {key: jax.numpy.float32(1) for key in ("loss", "grad_norm", "param_norm")}
    meter.add(6, scalars, 0.0, "batch 6")
    meter.add(7, scalars | {"loss": jax.numpy.float32(np.nan)}, 0.0, "batch 7")
    with pytest.raises(divergence.DivergedError) as info:
        meter.add(8, scalars, 0.0, "batch 8")
    assert (info.value.step, info.value.batch) == (7, "batch 7")


def test_missing_tensorboard_is_one_line_before_anything_is_done(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = dataclasses.replace(_config.get_config("debug"), tensorboard=True)
    with pytest.raises(errors.ConfigError, match=r"tensorboardX is not installed\. Run 'pip install tensorboardX'"):
        run_reports.check_installed(config)
    run_reports.check_installed(_config.get_config("debug"))


def test_tensorboard_files_hold_the_scalars(tmp_path):
    event_pb2 = pytest.importorskip(
        "tensorboardX.proto.event_pb2", reason="tensorboardX is not among the packages that the original openpi pins"
    )
    config = dataclasses.replace(_config.get_config("debug"), tensorboard=True)
    reports = run_reports.RunReports(config, tmp_path, 0)
    reports.write(3, LINE)
    reports.write_validation(3, {"valid_loss": 0.25})
    reports.finish()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), {}
    while data:  # length, its checksum, event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[12 + length + 4 :]
    assert found.keys() == {*LINE, "memory_gib", "valid_loss"}
    assert found["loss"] == (3, 1.0)
    assert found["valid_loss"] == (3, 0.25)


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_wandb_never_ends_a_run(tmp_path, monkeypatch, caplog, where):
    calls = []

    def act(name):
        calls.append(name)
        if name == where:
            raise RuntimeError("no network")

    run = types.SimpleNamespace(id="x", log=lambda *_, **__: act("log"), finish=lambda: act("finish"))
    fake = types.SimpleNamespace(init=lambda **_: (act("init"), run)[1])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = dataclasses.replace(_config.get_config("debug"), wandb_enabled=True)
    log = wandb_log.WandbLog(config, tmp_path, resuming=False)
    log.write(0, LINE)
    log.write(1, LINE)
    log.finish()
    assert calls[-1] == where
    assert "no network" in caplog.text


def test_wandb_is_not_used_unless_it_is_enabled(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=None))
    wandb_log.WandbLog(_config.get_config("pi0_realman"), tmp_path, resuming=False).write(0, LINE)


class FullDisk:
    """A disk that refuses every file below a folder while it is full."""

    def __init__(self, monkeypatch, folder):
        self.is_full = True
        self.open = pathlib.Path.open

        def open_(path, mode="r", *args, **kwargs):
            if self.is_full and set(mode) & set("wax") and path.is_relative_to(folder):
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.open(path, mode, *args, **kwargs)

        monkeypatch.setattr(pathlib.Path, "open", open_)
        monkeypatch.setattr(run_log.RunLog, "draw_curves", lambda self: open_(folder / run_log.CURVES_NAME, "w"))


def test_reports_that_cannot_be_written_never_end_a_run_and_are_written_later(tmp_path, monkeypatch, caplog):
    config = dataclasses.replace(_config.get_config("debug"), wandb_enabled=False)
    reports = run_reports.RunReports(config, tmp_path, 0)
    disk = FullDisk(monkeypatch, tmp_path)
    row = {"loss": 1.0, "grad_norm": 1.0, "param_norm": 1.0, "samples_per_s": 1.0, "loader_wait": 0.0}
    for step in range(3):
        reports.write(step, row)
        reports.write_validation(step, {"valid_loss": 1.0})
        reports.draw_curves()
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 3
    assert all("No space left on device" in line and line.endswith("Training continues without it") for line in said)
    disk.is_full = False
    reports.write(3, row)
    reports.write_validation(3, {"valid_loss": 1.0})
    reports.draw_curves()
    reports.finish()
    for name in (run_log.LOG_NAME, run_log.VALIDATION_LOG_NAME):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 1, 2, 3]
        with (tmp_path / name).with_suffix(".csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    assert [line["step"] for line in reports.lines] == [0, 1, 2, 3]
