"""A box in an arm's base frame where its tool may be."""

import dataclasses
from typing import Annotated

import numpy as np

from realman.errors import RejectedError
from realman.errors import SiteError
from realman.kinematics import ArmVec
from realman.kinematics import forward
from realman.ranges import Range
from realman.ranges import check_settings

_AXES = "xyz"
Meters = Annotated[float, Range(-2.0, 2.0, "an arm reaches 0.7 m, and its tool 1 m more")]


@dataclasses.dataclass(frozen=True)
class Box:
    """A box for the tool's tip, in its arm's base frame.

    z points from the arm's foot along its column.
    """

    lower_m: tuple[Meters, Meters, Meters]
    upper_m: tuple[Meters, Meters, Meters]
    tool_length_m: Annotated[float, Range(0.0, 1.0, "a tool longer than the arm cannot be used")] = 0.0
    """Distance of the tip from the flange along the flange's axis, m. With 0 the flange itself is checked."""

    def __post_init__(self) -> None:
        check_settings(self)
        for axis, low, high in zip(_AXES, self.lower_m, self.upper_m, strict=True):
            if low >= high:
                raise SiteError(f"workspace box: {axis} is {low}..{high} m, expected the lower number first")

    def tip_m(self, joints: ArmVec) -> np.ndarray:
        """Return the position of the tool's tip (3,), m."""
        flange = forward(joints)
        return flange[:3, 3] + self.tool_length_m * flange[:3, 2]

    def check(self, joints: ArmVec, name: str) -> None:
        """Refuse joints that bring the tip out of the box.

        Raises:
            RejectedError: The tip would be outside. The message begins with `name` and names every such axis.
        """
        tip_m = self.tip_m(joints)
        out = [
            f"{axis} = {value:.3f} m (box {low:g}..{high:g})"
            for axis, value, low, high in zip(_AXES, tip_m, self.lower_m, self.upper_m, strict=True)
            if not low <= value <= high
        ]
        if out:
            raise RejectedError(f"{name}: the tool would be outside its workspace box: {', '.join(out)}")
