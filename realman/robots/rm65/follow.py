"""A check that an arm follows its targets.

Streamed targets are never acknowledged, so only the arm's motion shows whether it follows.
"""

import numpy as np

from realman.errors import RejectedError
from realman.kinematics import ArmVec

_STANDS_STILL_RAD = float(np.deg2rad(0.2))
_NEAR_TARGET_RAD = float(np.deg2rad(2.0))
_MAX_GAP_S = 0.1
"""Longest time counted between two looks, because an arm is not expected to move while nothing is sent."""


class FollowWatch:
    """Detects an arm that stands still away from its target."""

    def __init__(self, name: str, timeout_s: float) -> None:
        """Watch one arm.

        Args:
            name: Name of the arm, for messages.
            timeout_s: How long it may stand still away from its target, s.
        """
        self._name = name
        self._timeout_s = timeout_s
        self._anchor: ArmVec | None = None
        self._looked_s = 0.0
        self._still_s = 0.0

    def look(self, target: ArmVec, measured: ArmVec, measured_s: float) -> None:
        """Compare the last target with where the arm is.

        Args:
            target: The last target sent.
            measured: The measured joints.
            measured_s: When the measurement arrived. Without a new one, as on a busy machine, no time counts as passed.

        Raises:
            RejectedError: The arm has not moved for too long.
        """
        apart = np.abs(target - measured).max()
        is_moving = self._anchor is None or np.abs(measured - self._anchor).max() > _STANDS_STILL_RAD
        if is_moving or apart <= _NEAR_TARGET_RAD:
            self._anchor, self._still_s = measured, 0.0
        else:
            self._still_s += min(measured_s - self._looked_s, _MAX_GAP_S)
        self._looked_s = measured_s
        if self._still_s > self._timeout_s:
            raise RejectedError(
                f"{self._name}: stands still {np.rad2deg(apart):.1f} deg away from its target "
                f"for {self._still_s:.1f} s. It refuses motion, is blocked, or its state push is frozen"
            )
