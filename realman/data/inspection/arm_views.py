"""Which arm moves which camera's picture: by how much the picture changes when an arm moves and the other is accounted for."""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy.stats import rankdata

from realman.data.inspection.images import ImageMeasure

MIN_INTERVALS = 20
"""An arm that moves in fewer pairs of frames than this proves nothing."""

MOVING_RAD = 0.02
"""An arm that travels this far between two frames, summed over its joints, moves."""

CLEAR_DIFFERENCE = 0.25
"""Difference of two strengths that is no accident; a mounted camera shows 0.5 or more, chance 0.1 at `MIN_INTERVALS`."""

_RIGHT, _LEFT = 0, 1


@dataclasses.dataclass(frozen=True)
class ArmView:
    """How strongly a camera's picture changes with each arm, from -1 to 1."""

    right: float
    left: float
    right_arm_side: float
    """Positive when the right arm moves the right half of the picture and the left arm the left half; negative when crossed."""
    moving_intervals: tuple[int, int]
    """In how many pairs of frames the right and left arm moves."""
    change_while_moving: tuple[float, float]
    """Mean change of the picture, 0..255, while the right and left arm moves."""

    def prefers(self, side: str) -> float:
        """How much more the picture changes with the arm of `side` than with the other one."""
        difference = self.right - self.left
        return difference if side == "right" else -difference


def measure_arm_views(episodes: Sequence[ImageMeasure]) -> dict[str, ArmView]:
    """Measure all cameras over all episodes."""
    names = list(dict.fromkeys(name for episode in episodes for name in episode.cameras))
    views = {}
    for name in names:
        seen = [e for e in episodes if name in e.cameras]
        travel = np.concatenate([e.travel for e in seen])
        halves = np.concatenate([e.cameras[name].halves for e in seen])
        whole = _strengths(halves.mean(axis=1), travel)
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
    """Standardised coefficients (right, left) of a regression of ranks: ranks, because change saturates with speed."""
    if len(change) < 3:
        return np.zeros(2)
    target, *arms = (_standard(rankdata(x)) for x in (change, *travel.T))
    design = np.stack(arms, axis=1)
    return np.linalg.lstsq(design, target, rcond=None)[0]


def _standard(values: np.ndarray) -> np.ndarray:
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)
