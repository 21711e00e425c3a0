"""Define what the checks judge, and what a finding is."""

from collections.abc import Iterable
import dataclasses
import functools
from typing import Literal

import numpy as np

from realman.data import units
from realman.data.inspection import arm_views
from realman.data.inspection.arm_views import ArmView
from realman.data.inspection.images import ImageMeasure
from realman.data.inspection.inspected_data import InspectedData
from realman.data.inspection.measure import EpisodeMeasure
from realman.data.inspection.motion import JOINTS
from realman.data.inspection.motion import EpisodeMotion
from realman.data.inspection.norm_stats import StateStats
from realman.data.raw.episode import ACTION
from realman.data.raw.episode import QPOS

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")

HighView = Literal["unknown", "from_robot", "towards_robot"]
"""Where cam_high is: behind the robot and looking the same way, or in front and facing it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing to know before training."""

    grade: Grade
    """error: training on it cannot work. warning: it probably hurts. note: good to know."""
    check: str
    """Short name, stable for scripts."""
    found: str
    """What was found, and where."""
    remedy: str
    """What to do, with the option that does it."""
    episodes: tuple[str, ...] = ()
    """Affected episodes. Empty means all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """The measures of all episodes, and what to compare them with.

    Without a readable episode only `episodes` and `data` can be used.
    """

    data: InspectedData
    cameras: tuple[str, ...]
    """Cameras that a dataset should have."""
    high_view: HighView
    norm_stats: StateStats | None
    """Statistics of a training run to compare the data with."""
    episodes: tuple[EpisodeMeasure, ...]

    @property
    def is_raw(self) -> bool:
        """Whether these are recordings and not a dataset."""
        return self.data.dataset is None

    @functools.cached_property
    def readable(self) -> tuple[EpisodeMeasure, ...]:
        """Episodes that could be read."""
        return tuple(e for e in self.episodes if e.problem is None)

    @functools.cached_property
    def motions(self) -> dict[str, EpisodeMotion]:
        """Measures of the joints by episode."""
        return {e.name: e.motion for e in self.readable if e.motion is not None}

    @functools.cached_property
    def images(self) -> dict[str, ImageMeasure]:
        """Measures of the cameras by episode."""
        return {e.name: e.images for e in self.readable if e.images is not None}

    @functools.cached_property
    def state_rows(self) -> np.ndarray:
        """(n, 14) sampled states of all episodes."""
        return np.concatenate([m.state for m in self.motions.values()])

    @functools.cached_property
    def ahead_rows(self) -> np.ndarray:
        """(n, 14) sampled learning targets of all episodes, from `EpisodeMotion.ahead`."""
        return np.concatenate([m.ahead for m in self.motions.values()])

    @functools.cached_property
    def state_range(self) -> np.ndarray:
        """(2, 14) minimum and maximum state of all frames."""
        return _union(m.state_range for m in self.motions.values())

    @functools.cached_property
    def action_range(self) -> np.ndarray:
        """(2, 14) minimum and maximum action of all frames."""
        return _union(m.action_range for m in self.motions.values())

    @functools.cached_property
    def positions(self) -> dict[str, np.ndarray]:
        """(n, 14) sampled and extreme positions.

        Keys are datasets of a recording. Their rows are those of the same frames.
        """
        motions = self.motions.values()
        return {
            QPOS: np.concatenate([*(m.state for m in motions), self.state_range]),
            ACTION: np.concatenate([*(m.action for m in motions), self.action_range]),
        }

    @functools.cached_property
    def has_plausible_angles(self) -> bool:
        """Whether the angles can be radians.

        If not, checks that compare them with rad or rad/s are useless.
        """
        largest = max(np.abs(r[:, JOINTS]).max(initial=0.0) for r in (self.state_range, self.action_range))
        return bool(largest <= units.FULL_TURN_RAD + units.LIMIT_TOLERANCE_RAD)

    @functools.cached_property
    def arm_views(self) -> dict[str, ArmView]:
        """How each camera's image changes with each arm."""
        return arm_views.measure_arm_views(list(self.images.values()))

    @functools.cached_property
    def lag_s(self) -> float | None:
        """Median delay from action to state.

        None if too little moves to measure it.
        """
        lags = [m.lag_s for m in self.motions.values() if m.lag_s is not None]
        return float(np.median(lags)) if lags else None

    def convert_with(self, flag: str) -> str:
        """Return a remedy that uses an option of the converter."""
        return f"convert with {flag}" if self.is_raw else f"convert the recordings again with {flag}"


def _union(ranges: Iterable[np.ndarray]) -> np.ndarray:
    stacked = np.stack([*ranges])
    return np.stack([stacked[:, 0].min(0), stacked[:, 1].max(0)])


def some(names: Iterable[str], most: int = 3) -> str:
    """Return a list of names in words, cut after `most`."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `2 episodes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
