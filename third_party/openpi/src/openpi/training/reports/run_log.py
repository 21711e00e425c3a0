"""Write the log, the curves and the first images of a run.

The log is written both as JSON lines and as CSV.
"""

from collections.abc import Mapping
import csv
import json
import pathlib
from typing import Any

import cv2
import numpy as np

from openpi.models import model as _model
from openpi.shared import errors

LOG_NAME = "train_log.jsonl"
VALIDATION_LOG_NAME = "validation_log.jsonl"
CURVES_NAME = "curves.png"
VIEWS_NAME = "camera_views.png"

_MAX_VIEWS = 5
_GAP_PX, _HEADER_PX = 4, 24
# Curves that span less than this factor are drawn on a linear scale.
_LOG_SPAN = 5.0
# Column, label and scale of each panel, and the columns of the validation that are drawn in it.
_CURVES = (
    ("loss", "loss", "log", ("valid_loss",)),
    ("grad_norm", "gradient norm", "log", ()),
    ("samples_per_s", "samples / s", "linear", ()),
)
# Column and label of the panel for the error. The first column that exists is drawn.
_ERROR_CURVES = (("joint_error_deg", "error of sampled actions, deg"), ("action_error", "error of sampled actions"))


class Table:
    """Rows of numbers by step, in JSON lines and in CSV.

    Both files hold the same rows.
    """

    def __init__(self, path: pathlib.Path, first_step: int, *, writes: bool) -> None:
        """Open a table.

        Args:
            path: File of JSON lines.
            first_step: Rows of this and later steps are dropped, because the steps are done again.
            writes: False in all processes but one.
        """
        self._path = path
        self._csv_path = path.with_suffix(".csv")
        self._writes = writes
        self._columns: list[str] = []
        # Whether the files lack rows, because a full disk refused them.
        self._is_behind = False
        self.rows = [row for row in self._read() if row["step"] < first_step]
        if writes and path.exists():
            self._rewrite()

    def _rewrite(self) -> None:
        # A process that is killed here must leave the old rows or the new ones.
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        partial.replace(self._path)
        self._rewrite_csv()

    def _read(self) -> list[dict[str, float]]:
        if not self._path.exists():
            return []
        try:
            # A killed process may have left half a line at the end.
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            if not all(isinstance(row, dict) and "step" in row for row in rows):
                raise ValueError("expected an object with 'step' in each line")
        except ValueError as e:
            raise errors.DataError(f"{self._path}: not a log ({e}). Delete it to continue without older curves") from e
        return rows

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row and write it to the disk at once.

        Rows that the disk refused are written with the next one.
        """
        self.rows.append(dict(row))
        if not self._writes:
            return
        if self._is_behind:
            self._rewrite()
        else:
            self._is_behind = True
            self._append(row)
        self._is_behind = False

    def _append(self, row: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if set(row) - set(self._columns):
            self._rewrite_csv()
            return
        with self._csv_path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite_csv(self) -> None:
        self._columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with self._csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self.rows)


class RunLog:
    """The log of one run, in its checkpoint folder.

    A resumed run continues in the same files.
    """

    def __init__(self, directory: pathlib.Path, first_step: int, *, writes: bool = True) -> None:
        """Open the log.

        Args:
            directory: Folder of the run.
            first_step: Lines of this and later steps are dropped, because the steps are done again.
            writes: False in all processes but one.
        """
        self._directory = directory
        self._writes = writes
        self._train = Table(directory / LOG_NAME, first_step, writes=writes)
        self._validation = Table(directory / VALIDATION_LOG_NAME, first_step, writes=writes)

    @property
    def lines(self) -> list[dict[str, float]]:
        """All lines on training, including those from before a resume."""
        return list(self._train.rows)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line on training."""
        self._train.append({"step": step, **metrics})

    def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line on validation."""
        self._validation.append({"step": step, **metrics})

    def draw_curves(self) -> pathlib.Path:
        """Draw all lines into one PNG and return its path."""
        from matplotlib import figure as _figure  # takes 0.3 s, and the first curves are minutes away

        path = self._directory / CURVES_NAME
        if not self._writes:
            return path
        # The panels: those of training, then one for the error of a validation.
        validation = self._validation.rows
        error = next((curve for curve in _ERROR_CURVES if validation and curve[0] in validation[-1]), None)
        num_panels = len(_CURVES) + (error is not None)
        figure = _figure.Figure(figsize=(8, 2.4 * num_panels), layout="constrained")
        axes = figure.subplots(num_panels, 1, sharex=True)
        for axis, (key, label, scale, others) in zip(axes, _CURVES, strict=False):
            _plot(axis, self._train.rows, key, "training", "C0")
            for other in others:
                _plot(axis, validation, other, "validation", "C1")
            axis.set(ylabel=label, yscale=scale if _span(axis) > _LOG_SPAN else "linear")
        if validation:
            axes[0].legend(loc="upper right")
        if error is not None:
            _plot(axes[-1], validation, error[0], "validation", "C1")
            finite = [value for row in validation if np.isfinite(value := row.get(error[0], np.nan))]
            axes[-1].set(ylabel=error[1], ylim=(0, 1.05 * max(finite) if any(finite) else None))
        # What all panels share.
        for axis in axes:
            axis.grid(alpha=0.3)
        axes[-1].set_xlabel("step")
        axes[0].set_title(f"{self._directory.parent.name}, run {self._directory.name}")
        figure.savefig(path, dpi=120)
        return path


def _plot(axis: Any, rows: list[dict[str, float]], key: str, label: str, color: str) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=label, color=color)


def _span(axis: Any) -> float:
    """Return the ratio of the largest and the smallest value drawn.

    It is 1 if nothing is drawn or a value is not positive.
    """
    values = np.concatenate([[np.nan], *(line.get_ydata() for line in axis.get_lines())])
    values = values[np.isfinite(values)]
    return float(values.max() / values.min()) if values.size and values.min() > 0 else 1.0


def save_camera_views(directory: pathlib.Path, observation: _model.Observation) -> pathlib.Path:
    """Write the images that the model sees of the first samples.

    The result has a row per sample and a named column per image slot.

    Args:
        directory: Folder of the run.
        observation: A batch. Its images are float in [-1, 1] and have equal sizes.

    Returns:
        Path of the PNG.
    """
    columns = [_column(name, np.asarray(image[:_MAX_VIEWS])) for name, image in observation.images.items()]
    pixels = np.concatenate(columns, axis=1)
    path = directory / VIEWS_NAME
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path


def _column(name: str, images: np.ndarray) -> np.ndarray:
    """Stack the images of a slot below its name, on white."""
    pixels = np.clip((images + 1) * 127.5, 0, 255).astype(np.uint8)
    framed = np.pad(pixels, ((0, 0), (0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=255)
    header = np.full((_HEADER_PX, framed.shape[2], 3), 255, np.uint8)
    cv2.putText(header, name, (2, _HEADER_PX - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([header, *framed])
