"""Measure which arm moves which camera's image.

The measure is how much the image changes with the motion of one arm after the other arm has been accounted for.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy.stats import rankdata

from realman.data.inspection.images import ImageMeasure

MIN_INTERVALS = 20
"""If an arm moves in fewer pairs of frames than this, nothing can be concluded from it."""

MOVING_RAD = 0.02
"""An arm moves if it travels farther than this between two frames, summed over its joints."""

CLEAR_DIFFERENCE = 0.25
"""Difference of two strengths that is not chance. Mounted cameras give 0.5 or more, chance 0.1 at `MIN_INTERVALS`."""

_RIGHT, _LEFT = 0, 1


@dataclasses.dataclass(frozen=True)
class ArmView:
    """How strongly a camera's image follows each arm, from -1 to 1."""

    right: float
    left: float
    right_arm_side: float
    """Positive if each arm moves the half of the image on its own side, negative if it moves the other half."""
    moving_intervals: tuple[int, int]
    """Number of pairs of frames in which the right and left arm moves."""
    change_while_moving: tuple[float, float]
    """Mean change of the image, 0..255, while the right and left arm moves."""

    def prefers(self, side: str) -> float:
        """Return how much more the image follows this side's arm."""
        difference = self.right - self.left
        return difference if side == "right" else -difference


def measure_arm_views(episodes: Sequence[ImageMeasure]) -> dict[str, ArmView]:
    """Measure each camera over all episodes."""
    names = list(dict.fromkeys(name for episode in episodes for name in episode.cameras))
    views = {}
    for name in names:
        seen = [e for e in episodes if name in e.cameras]
        travel = np.concatenate([e.travel for e in seen])
        halves = np.concatenate([e.cameras[name].halves for e in seen])
        whole = _strengths(halves.mean(axis=1), travel)
        # A camera that shows both arms says which side it looks from: compare each arm's effect on both halves.
        left_half, right_half = _strengths(halves[:, 0], travel), _strengths(halves[:, 1], travel)
        same_side = (right_half - left_half)[_RIGHT] + (left_half - right_half)[_LEFT]
        moving = travel > MOVING_RAD
        change = [float(halves[rows].mean()) if rows.any() else 0.0 for rows in moving.T]
        views[name] = ArmView(
            right=float(whole[_RIGHT]),
            left=float(whole[_LEFT]),
            right_arm_side=float(same_side) / 2,
            moving_intervals=(int(moving[:, _RIGHT].sum()), int(moving[:, _LEFT].sum())),
            change_while_moving=(change[_RIGHT], change[_LEFT]),
        )
    return views


def _strengths(change: np.ndarray, travel: np.ndarray) -> np.ndarray:
    """Return standardized coefficients (right, left) of a regression of ranks.

    Ranks are used because the change of an image saturates with speed.
    """
    if len(change) < 3:
        return np.zeros(2)
    target, *arms = (_standard(rankdata(x)) for x in (change, *travel.T))
    design = np.stack(arms, axis=1)
    return np.linalg.lstsq(design, target, rcond=None)[0]


def _standard(values: np.ndarray) -> np.ndarray:
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)
