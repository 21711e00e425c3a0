"""What a training run leaves behind to look at: a JSON line per log step, curves, and the first images."""

from collections.abc import Mapping
import json
import pathlib

import cv2
import matplotlib.figure
import numpy as np

from openpi.models import model as _model

LOG_NAME = "train_log.jsonl"
CURVES_NAME = "curves.png"
VIEWS_NAME = "camera_views.png"

_MAX_VIEWS = 5
_CURVES = (("loss", "loss", "log"), ("grad_norm", "gradient norm", "log"), ("samples_per_s", "samples / s", "linear"))


class RunLog:
    """The log of one run, in its checkpoint folder. A resumed run goes on in the same files."""

    def __init__(self, directory: pathlib.Path, first_step: int) -> None:
        """Open the log; lines of steps that will be done again (`first_step` and later) are dropped."""
        self._path = directory / LOG_NAME
        self._lines = [line for line in self._read() if line["step"] < first_step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in self._lines))

    def _read(self) -> list[dict[str, float]]:
        if not self._path.exists():
            return []
        # A process that was killed may have left half a line at the end.
        return [json.loads(line) for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def lines(self) -> list[dict[str, float]]:
        """All that was logged, resumed parts included."""
        return list(self._lines)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        line = {"step": step, **metrics}
        self._lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def draw_curves(self) -> pathlib.Path:
        """Draw all lines into one PNG and return its path."""
        figure = matplotlib.figure.Figure(figsize=(8, 2.4 * len(_CURVES)), layout="constrained")
        axes = figure.subplots(len(_CURVES), 1, sharex=True)
        steps = [line["step"] for line in self._lines]
        for axis, (key, label, scale) in zip(axes, _CURVES, strict=True):
            axis.plot(steps, [line[key] for line in self._lines], marker="." if len(steps) < 50 else None)
            axis.set(ylabel=label, yscale=scale)
            axis.grid(alpha=0.3)
        axes[-1].set_xlabel("step")
        path = self._path.with_name(CURVES_NAME)
        figure.savefig(path, dpi=120)
        return path


def save_camera_views(directory: pathlib.Path, observation: _model.Observation) -> pathlib.Path:
    """Write what the model sees of the first samples of a batch: a row per sample, a column per image slot.

    Args:
        directory: Of the run.
        observation: Images float in [-1, 1], equal sizes.

    Returns:
        Path of the PNG.
    """
    rows = np.concatenate([np.asarray(image[:_MAX_VIEWS]) for image in observation.images.values()], axis=2)
    pixels = np.clip((rows.reshape(-1, *rows.shape[2:]) + 1) * 127.5, 0, 255).astype(np.uint8)
    path = directory / VIEWS_NAME
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path
