"""Measure how far predicted actions are from recorded ones.

Errors are in deg and gripper fraction, and compared with the "hold position" baseline.
"""

import dataclasses
from typing import Any

import numpy as np

from realman import spec
from realman.arrays import JointTraj
from realman.arrays import JointVec

GROUPS = {"joints": list(spec.JOINT_DIMS), "grippers": list(spec.GRIPPER_DIMS)}
"""Which of the 14 numbers share a unit."""

DISPLAY_UNITS = tuple("deg" if i in spec.JOINT_DIMS else "fraction" for i in range(spec.NUM_DIMS))
"""Unit of each of the 14 numbers in reports."""

_DISPLAY_SCALE = np.array([np.rad2deg(1.0) if unit == "deg" else 1.0 for unit in DISPLAY_UNITS])


@dataclasses.dataclass(frozen=True, eq=False)
class ActionErrors:
    """Absolute errors over an episode for each of the 14 numbers.

    They are in display units: deg for joints, fraction of the stroke for grippers.
    """

    mae: JointVec
    worst: JointVec
    baseline_mae: JointVec
    overall_ratio: float | None
    """Mean error divided by the baseline's, over all 14 numbers in the training units: rad and gripper fraction."""

    def per_dim(self) -> list[dict[str, Any]]:
        """Return one plain dict for each of the 14 numbers."""
        return [
            {
                "name": spec.DIM_NAMES[i],
                "unit": DISPLAY_UNITS[i],
                "mae": float(self.mae[i]),
                "baseline_mae": float(self.baseline_mae[i]),
                "ratio": _ratio(self.mae[i], self.baseline_mae[i]),
                "max_error": float(self.worst[i]),
            }
            for i in range(spec.NUM_DIMS)
        ]

    def groups(self) -> dict[str, dict[str, Any]]:
        """Return the means over the 12 joints and over the 2 grippers."""
        return {
            name: {
                "unit": DISPLAY_UNITS[dims[0]],
                "mae": float(self.mae[dims].mean()),
                "baseline_mae": float(self.baseline_mae[dims].mean()),
                "ratio": _ratio(self.mae[dims].mean(), self.baseline_mae[dims].mean()),
                "max_error": float(self.worst[dims].max()),
            }
            for name, dims in GROUPS.items()
        }


def action_errors(predicted: JointTraj, recorded: JointTraj, baseline: JointTraj) -> ActionErrors:
    """Compare predicted actions and a baseline with the recorded ones.

    All are (t, 14) in rad and gripper fraction.
    """
    error, baseline_error = np.abs(predicted - recorded), np.abs(baseline - recorded)
    return ActionErrors(
        mae=error.mean(axis=0) * _DISPLAY_SCALE,
        worst=error.max(axis=0) * _DISPLAY_SCALE,
        baseline_mae=baseline_error.mean(axis=0) * _DISPLAY_SCALE,
        overall_ratio=_ratio(error.mean(), baseline_error.mean()),
    )


def _ratio(value: float, baseline: float) -> float | None:
    """Return the ratio, or None if the baseline is perfect.

    It is perfect for a number that never moves.
    """
    return float(value / baseline) if baseline > 0 else None
