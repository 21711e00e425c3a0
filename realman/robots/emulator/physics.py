"""How joints and grippers respond to a controller's command.

Holds the interface and its simplest implementation.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from realman import spec
from realman.kinematics import ArmVec

GRIPPER_STROKE_S = 0.7
"""Time of a full stroke at full speed, s: 70 mm at 97 mm/s (EG2-4C2 data sheet)."""


class ArmTarget(NamedTuple):
    """Command of one arm: joints in rad, gripper opening 0..1."""

    joints: ArmVec
    gripper: float
    gripper_speed: float
    """Share of full gripper speed, 0..1."""


class ArmPosition(NamedTuple):
    """Position of one arm: joints in rad, gripper opening 0..1."""

    joints: ArmVec
    gripper: float


@runtime_checkable
class Physics(Protocol):
    """A world with one or two arms.

    All calls come from one thread, the emulator's.
    """

    def place(self, side: str, position: ArmPosition) -> None:
        """Put an arm at its power-on position."""
        ...

    def set_target(self, side: str, target: ArmTarget) -> None:
        """Command one arm. The target holds until the next call."""
        ...

    def position(self, side: str) -> ArmPosition:
        """Return the measured position of one arm."""
        ...

    def advance(self, dt_s: float) -> None:
        """Let time pass for everything."""
        ...


class KinematicPhysics:
    """Weightless arms in empty space.

    Joints and grippers move to their targets, at most at their top speed.
    """

    def __init__(self) -> None:
        self._positions: dict[str, ArmPosition] = {}
        self._targets: dict[str, ArmTarget] = {}

    def place(self, side: str, position: ArmPosition) -> None:
        """Put an arm at its power-on position."""
        self._positions[side] = position
        self._targets[side] = ArmTarget(*position, gripper_speed=1.0)

    def set_target(self, side: str, target: ArmTarget) -> None:
        """Command one arm. The target holds until the next call."""
        self._targets[side] = target

    def position(self, side: str) -> ArmPosition:
        """Return the measured position of one arm."""
        return self._positions[side]

    def advance(self, dt_s: float) -> None:
        """Move everything towards its target."""
        for side, target in self._targets.items():
            now = self._positions[side]
            reach = spec.ARM_SPEED_RAD_S * dt_s
            grip = target.gripper_speed * dt_s / GRIPPER_STROKE_S
            self._positions[side] = ArmPosition(
                now.joints + np.clip(target.joints - now.joints, -reach, reach),
                now.gripper + min(max(target.gripper - now.gripper, -grip), grip),
            )
