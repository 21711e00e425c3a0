"""Addresses and limits of a pair of RM65 arms.

Units are in the names.
"""

import dataclasses
from typing import Literal

from realman import spec
from realman.errors import SiteError


@dataclasses.dataclass(frozen=True)
class GripperSettings:
    """The grippers on both arms."""

    kind: Literal["eg2", "ctag", "none"] = "eg2"
    """'eg2': Inspire EG2-4C2 through the controller. 'ctag': CTAG 90D over Modbus. 'none': the arm has no gripper."""
    rate_hz: float = 15.0
    """Rate at which each gripper is read, and the largest rate of its commands, Hz."""
    dead_band: float = 0.02
    """Smallest change of the opening (0..1) that is sent. Fully open and fully closed are always sent."""
    max_age_s: float = 1.0
    """Largest age of a gripper position to act on, s."""
    ctag_open_register: int = 0
    """Position register of a fully open CTAG gripper."""
    ctag_closed_register: int = 9000
    """Position register of a fully closed CTAG gripper."""
    ctag_speed_percent: int = 80
    """Speed of a CTAG gripper, percent."""
    ctag_force_percent: int = 30
    """Largest force of a CTAG gripper, percent."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 50:
            raise SiteError(f"gripper: 'rate_hz' is {self.rate_hz}, expected above 0 and at most 50 Hz")
        if not 0 <= self.dead_band < 1:
            raise SiteError(f"gripper: 'dead_band' is {self.dead_band}, expected 0 or more and less than 1")
        if self.ctag_open_register == self.ctag_closed_register:
            raise SiteError(
                f"gripper: 'ctag_open_register' and 'ctag_closed_register' are both {self.ctag_open_register}, "
                "expected different registers"
            )


@dataclasses.dataclass(frozen=True)
class Rm65Settings:
    """Two RM65 arms."""

    right_host: str = "192.168.1.19"
    """Address of the right arm's controller."""
    left_host: str = "192.168.1.18"
    """Address of the left arm's controller."""
    tcp_port: int = 8080
    """TCP port of both controllers."""
    push_port: int = 8089
    """UDP port of this machine that the controllers push their state to. Only one process can use a port."""
    push_cycle: int = 1
    """Push period in units of 5 ms. 1 is 200 Hz."""
    push_host: str | None = None
    """Address of this machine as the arms see it. None detects it."""
    fps: float = float(spec.DEFAULT_FPS)
    """Rate of targets, Hz."""
    follow: Literal["low", "high"] = "low"
    """'low': the controller plans towards each target and may start anywhere. 'high': targets are interpolated to
    `high_follow_rate_hz` here and the arm follows them at once. This needs a steady machine and a wired network."""
    high_follow_rate_hz: float = 100.0
    """Rate of commands in high follow, Hz. The controller expects 100 or more."""
    collision_stage: int | None = None
    """Sensitivity of the collision detection (0..8), set at connect. None keeps the teach pendant's setting."""
    max_state_age_s: float = 0.1
    """Largest age of a state to act on, s."""
    max_camera_age_s: float = 0.2
    """Largest age of a camera image to act on, s."""
    reply_timeout_s: float = 0.5
    """How long a controller may take to answer, s."""
    stop_timeout_s: float = 0.3
    """How long the SDK may take to stop an arm before a raw TCP stop is sent, s."""
    connect_timeout_s: float = 5.0
    """How long one arm may take to connect, s."""
    gripper: GripperSettings = GripperSettings()

    def __post_init__(self) -> None:
        if self.right_host == self.left_host:
            raise SiteError(f"rm65: both arms have the address '{self.right_host}', expected one for each controller")
        for name in ("fps", "max_state_age_s", "max_camera_age_s", "reply_timeout_s", "stop_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SiteError(f"rm65: '{name}' is {getattr(self, name)}, expected a finite number greater than 0")
        if self.follow == "high" and self.high_follow_rate_hz < max(100.0, self.fps):
            raise SiteError(
                f"rm65: 'high_follow_rate_hz' is {self.high_follow_rate_hz}, "
                "expected 100 Hz or more, and not below 'fps'"
            )
        if self.collision_stage is not None and self.collision_stage not in range(9):
            raise SiteError(f"rm65: 'collision_stage' is {self.collision_stage}, expected 0..8")
        if self.push_cycle < 1:
            raise SiteError(f"rm65: 'push_cycle' is {self.push_cycle}, expected 1 or more (x 5 ms)")

    def host(self, side: str) -> str:
        """Return the address of one arm."""
        return self.right_host if side == "right" else self.left_host
