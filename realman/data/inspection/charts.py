"""Draw the charts of the report as inline SVG.

Their colors are the page's CSS variables, so they follow a light or dark page.
"""

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from realman import spec
from realman.data.inspection.motion import JOINTS
from realman.data.inspection.survey import Survey

# Matplotlib needs real colors. These unusual ones are replaced by CSS variables in the finished SVG.
_INK, _MUTED, _GRID, _STATE, _ACTION, _BAD = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_CSS = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _STATE: "state", _ACTION: "action", _BAD: "error"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # Text stays text: sharp, small and searchable.
    "svg.hashsalt": "realman",  # The same data gives the same file.
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify_threshold": 0.5,
}
_MAX_LINES = 30
"""Most episodes drawn behind the highlighted one."""

_MAX_BARS = 200


def joint_chart(survey: Survey) -> str:
    """Draw the 14 numbers over time.

    The left arm is on the left and the right arm on the right. One episode is in color and others are behind it.
    Joint limits are drawn where the values come near them.
    """
    names = list(survey.motions)
    shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(_MAX_LINES, len(names))).astype(int))]
    chosen = highlighted_episode(survey)
    fps = {e.name: e.fps for e in survey.readable}
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 12), layout="constrained")
        axes = figure.subplots(7, 2, sharex=True)
        for column, side in enumerate(("left", "right")):
            for ax, dim in zip(axes[:, column], range(spec.NUM_DIMS)[spec.ARM_SLICES[side]], strict=True):
                scale = np.rad2deg(1.0) if dim in JOINTS else 1.0
                # The other episodes first, so that the highlighted one is drawn over them.
                for name in shown:
                    motion = survey.motions[name]
                    ax.plot(motion.frames / fps[name], motion.state[:, dim] * scale, color=_GRID, linewidth=0.7)
                motion = survey.motions[chosen]
                time_s = motion.frames / fps[chosen]
                ax.plot(time_s, motion.action[:, dim] * scale, color=_ACTION, linewidth=1.4)
                ax.plot(time_s, motion.state[:, dim] * scale, color=_STATE, linewidth=1.4)
                _label(ax, dim, scale)
            axes[0, column].set_title(f"{side} arm", fontsize=11, color=_INK)
            axes[-1, column].set_xlabel("time [s]")
        figure.align_ylabels()
        return _svg(figure, f"joints of both arms over time, {chosen} highlighted")


def highlighted_episode(survey: Survey) -> str:
    """Return the name of the episode of median length."""
    ordered = sorted((e for e in survey.readable if e.name in survey.motions), key=lambda e: e.num_frames)
    return ordered[len(ordered) // 2].name


def _label(ax: Axes, dim: int, scale: float) -> None:
    is_joint = dim in JOINTS
    name = spec.DIM_NAMES[dim].partition("_")[2].replace("_", " ")
    ax.set_ylabel(f"{name}\n[{'deg' if is_joint else '1 = open'}]", fontsize=8)
    ax.tick_params(labelsize=8, length=2)
    low, high = ax.get_ylim()
    # The noise of a resting joint must not look like motion.
    extra = max(0.0, (5.0 if is_joint else 0.3) - (high - low)) / 2
    low, high = low - extra, high + extra
    for limit in (spec.LOWER[dim] * scale, spec.UPPER[dim] * scale):
        if low - 0.2 * (high - low) <= limit <= high + 0.2 * (high - low):
            ax.axhline(limit, color=_BAD, linewidth=1, linestyle=(0, (5, 3)))
            low, high = min(low, limit - 0.04 * (high - low)), max(high, limit + 0.04 * (high - low))
    ax.set_ylim(low, high)
    ax.margins(x=0)


def length_chart(survey: Survey) -> str:
    """Draw the length of each episode in s.

    Many episodes become a histogram.
    """
    seconds = np.array([e.seconds for e in survey.readable])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 1.9), layout="constrained")
        ax = figure.subplots()
        if len(seconds) <= _MAX_BARS:
            ax.bar(range(len(seconds)), seconds, color=_STATE, width=0.7)
            ax.axhline(float(np.median(seconds)), color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            ax.set_xlabel("episode, in order (dashed: median)")
            ax.set_ylabel("length [s]")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlim(-0.7, max(len(seconds) - 0.3, 9.7))
        else:
            ax.hist(seconds, bins=60, color=_STATE)
            ax.set_xlabel("length [s]")
            ax.set_ylabel("episodes")
        return _svg(figure, "length of each episode")


def _svg(figure: Figure, label: str) -> str:
    """Return the figure as an SVG element for an HTML page.

    It has no XML header and no fixed size, and its colors are CSS variables.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{label}"', text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    for color, name in _CSS.items():
        text = text.replace(color, f"var(--{name})")
    return text.replace("sans-serif", "inherit")
