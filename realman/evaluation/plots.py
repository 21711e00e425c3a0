"""Draw the figures of the offline evaluation.

Arrays in, figure out: no files are read and no display is needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from realman import spec
from realman.arrays import JointTraj

_RECORDED: dict[str, Any] = {"color": "0.25", "linewidth": 1.6}
_PREDICTED: dict[str, Any] = {"color": "C0", "linewidth": 1.4}
_HOLD: dict[str, Any] = {"color": "0.7", "linewidth": 0.9, "linestyle": (0, (4, 3))}
_INFERENCE: dict[str, Any] = {"color": "0.88", "linewidth": 0.8, "zorder": 0}
_DPI = 120
_MIN_SPAN_DEG = 4.0
"""Smallest height of a joint's axis, because the noise of a resting joint must not look like motion."""

_GRIPPER_AXIS = (-0.05, 1.05)
"""Smallest range of a gripper's axis: its whole stroke."""


def plot_episode(
    recorded: JointTraj,
    predicted: JointTraj,
    hold: JointTraj,
    *,
    fps: float,
    inference_frames: Sequence[int],
    title: str,
) -> Figure:
    """Draw recorded and predicted actions of one episode.

    There are 7 rows of numbers, with the left arm on the left and the right arm on the right.

    Args:
        recorded: Recorded actions (t, 14), rad and gripper fraction, right arm first.
        predicted: Actions that the client would have executed at the same frames (t, 14).
        hold: The baseline: the position held since each inference (t, 14).
        fps: Frames per second.
        inference_frames: Frames at which the policy was asked.
        title: Title of the figure.
    """
    time_s = np.arange(len(recorded)) / fps
    figure = Figure(figsize=(13, 15), layout="constrained")
    axes = figure.subplots(len(spec.ARM_JOINTS) + 1, 2, sharex=True)
    # The left arm is drawn on the left, although the right arm comes first in the arrays.
    for column, side in enumerate(("left", "right")):
        dims = range(spec.NUM_DIMS)[spec.ARM_SLICES[side]]
        for ax, dim in zip(axes[:, column], dims, strict=True):
            _draw_dim(ax, dim, time_s, (hold, recorded, predicted))
            for frame in inference_frames:
                ax.axvline(frame / fps, **_INFERENCE)
        axes[0, column].set_title(f"{side} arm", fontsize=11)
        axes[-1, column].set_xlabel("time [s]")
        axes[-1, column].set_xlim(0, max(time_s[-1], 1 / fps))
    figure.align_ylabels()
    figure.suptitle(title, fontsize=12)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def plot_executions(
    recorded: JointTraj, played: Mapping[str, np.ndarray], *, fps: float, title: str, speeds: bool = False
) -> Figure:
    """Draw what each execution mode sends, next to the recorded actions.

    There are 7 rows of numbers, with the left arm on the left and the right arm on the right.

    Args:
        recorded: Recorded actions (t, 14), rad and gripper fraction, right arm first.
        played: Targets of each mode (u, 14). `sync` may be longer, because it stops during predictions.
        fps: Steps per second.
        title: Title of the figure.
        speeds: Draw the change per second instead, because it shows seams and stalls better.
    """
    figure = Figure(figsize=(13, 15), layout="constrained")
    axes = figure.subplots(len(spec.ARM_JOINTS) + 1, 2, sharex=True)
    lines = {"recorded": (recorded, _RECORDED)}
    for i, (name, targets) in enumerate(played.items()):
        lines[name] = (targets, {"color": f"C{i}", "linewidth": 1.1})
    for column, side in enumerate(("left", "right")):
        for ax, dim in zip(axes[:, column], range(spec.NUM_DIMS)[spec.ARM_SLICES[side]], strict=True):
            for name, (targets, style) in lines.items():
                values = np.rad2deg(targets[:, dim]) if dim in spec.JOINT_DIMS else targets[:, dim]
                values = np.diff(values) * fps if speeds else values
                ax.plot(np.arange(len(values)) / fps, values, label=name, **style)
            _label_dim(ax, dim, speeds=speeds)
        axes[0, column].set_title(f"{side} arm", fontsize=11)
        axes[-1, column].set_xlabel("time [s]")
    figure.align_ylabels()
    figure.suptitle(title, fontsize=12)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=_DPI, format="png")


def _draw_dim(ax: Axes, dim: int, time_s: np.ndarray, lines: tuple[JointTraj, JointTraj, JointTraj]) -> None:
    is_joint = dim in spec.JOINT_DIMS
    styles = ((_HOLD, "hold position"), (_RECORDED, "recorded"), (_PREDICTED, "predicted"))
    for line, (style, label) in zip(lines, styles, strict=True):
        values = np.rad2deg(line[:, dim]) if is_joint else line[:, dim]
        ax.plot(time_s, values, label=label, **style)
    _label_dim(ax, dim)


def _label_dim(ax: Axes, dim: int, *, speeds: bool = False) -> None:
    is_joint = dim in spec.JOINT_DIMS
    name, unit = spec.DIM_NAMES[dim].partition("_")[2], "deg" if is_joint else "stroke" if speeds else "0..1, 1 = open"
    unit += "/s" if speeds else ""
    low, high = ax.get_ylim()
    if is_joint:
        extra = max(0.0, _MIN_SPAN_DEG - (high - low)) / 2
        ax.set_ylim(low - extra, high + extra)
    else:
        ax.set_ylim(min(low, _GRIPPER_AXIS[0]), max(high, _GRIPPER_AXIS[1]))
    ax.set_ylabel(f"{name.replace('_', ' ')}\n[{unit}]", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
