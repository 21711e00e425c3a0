"""Addresses and limits of a pair of RM65 arms.

Units are in the names.
"""

import dataclasses
from typing import Annotated, Literal

import numpy as np

from realman import spec
from realman.errors import SiteError
from realman.ranges import OnRealArms
from realman.ranges import Port
from realman.ranges import Range
from realman.ranges import check_settings
from realman.robots.rm65.addresses import problem

PUSH_UNIT_S = 0.005
"""Unit of a push cycle, s. It is the tick of the emulated controllers, too."""

# An arm at the vendor's largest speed turns by 22.5 deg in 0.1 s.
_FASTEST_DEG_S = round(float(np.rad2deg(spec.ARM_SPEED_RAD_S).max()))

Register = Annotated[int, Range(0, 65535, "a Modbus register has 16 bits")]
Percent = Annotated[int, Range(1, 100, "a percentage, and with 0 the gripper stands still")]


@dataclasses.dataclass(frozen=True)
class GripperSettings:
    """The grippers on both arms."""

    kind: Literal["eg2", "ctag", "none"] = "eg2"
    """'eg2': Inspire EG2-4C2 through the controller. 'ctag': CTAG 90D over Modbus. 'none': the arm has no gripper."""
    rate_hz: Annotated[float, Range(1.0, 50.0, "a read takes the tool's bus about 20 ms")] = 15.0
    """Rate at which each gripper is read, and the largest rate of its commands, Hz."""
    dead_band: Annotated[float, Range(0.0, 0.25, "a gripper must follow the policy")] = 0.02
    """Smallest change of the opening (0..1) that is sent while it moves. Where it stays is always sent."""
    max_age_s: Annotated[
        float,
        Range(0.04, 60.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(0.04, 5.0, "a gripper closes in less than a second"),
    ] = 1.0
    """Largest age of a gripper position to act on, s."""
    ctag_open_register: Register = 0
    """Position register of a fully open CTAG gripper."""
    ctag_closed_register: Register = 9000
    """Position register of a fully closed CTAG gripper."""
    ctag_speed_percent: Percent = 80
    """Speed of a CTAG gripper, percent."""
    ctag_force_percent: Percent = 30
    """Largest force of a CTAG gripper, percent."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.max_age_s < 1 / self.rate_hz:
            raise SiteError(
                f"max_age_s: found {self.max_age_s}, expected at least {1 / self.rate_hz:.3g}, the time between two "
                "reads at 'rate_hz'"
            )
        if self.ctag_open_register == self.ctag_closed_register:
            raise SiteError(
                f"ctag_open_register and ctag_closed_register: both are {self.ctag_open_register}, "
                "expected different registers"
            )


@dataclasses.dataclass(frozen=True)
class Rm65Settings:
    """Two RM65 arms."""

    right_host: str = "192.168.1.19"
    """Address of the right arm's controller, or its name."""
    left_host: str = "192.168.1.18"
    """Address of the left arm's controller, or its name."""
    tcp_port: Port = 8080
    """TCP port of both controllers."""
    push_port: Port = 8089
    """UDP port of this machine that the controllers push their state to. Only one process can use a port."""
    push_cycle: Annotated[int, Range(1, 40, "in units of 5 ms, and states that are 0.2 s apart are useless")] = 1
    """Push period in units of 5 ms. 1 is 200 Hz."""
    push_host: str | None = None
    """Address of this machine as the arms see it. None detects it."""
    fps: Annotated[float, Range(1.0, 200.0, "the arms report 200 states per second")] = float(spec.DEFAULT_FPS)
    """Rate of targets, Hz."""
    follow: Literal["low", "high"] = "low"
    """'low': the controller plans towards each target and may start anywhere. 'high': commands at `high_follow_rate_hz`
    walk from target to target and the arm follows them at once. This needs a steady machine and a wired network."""
    high_follow_rate_hz: Annotated[float, Range(100.0, 500.0, "the controller expects a command every 2 to 10 ms")] = (
        100.0
    )
    """Rate of commands in high follow, Hz. The controller expects 100 or more."""
    collision_stage: Annotated[int, Range(0, 8, "the controller has these stages")] | None = None
    """Sensitivity of the collision detection (0..8), set at connect. 0 switches it off on purpose. None keeps the teach pendant's setting."""
    max_state_age_s: Annotated[
        float,
        Range(0.01, 60.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(0.01, 0.5, f"an arm can turn by {_FASTEST_DEG_S // 2} deg in 0.5 s"),
    ] = 0.1
    """Largest age of a state to act on, s."""
    max_camera_age_s: Annotated[
        float,
        Range(0.01, 60.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(0.01, 2.0, "the policy must see what the arms did"),
    ] = 0.2
    """Largest age of a camera image to act on, s."""
    reply_timeout_s: Annotated[
        float,
        Range(0.02, 60.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(0.02, 5.0, "a controller answers within milliseconds"),
    ] = 0.5
    """How long a controller may take to answer, s."""
    stop_timeout_s: Annotated[
        float,
        Range(0.02, 60.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(0.02, 1.0, f"an arm can turn by {_FASTEST_DEG_S} deg in 1 s"),
    ] = 0.3
    """How long the SDK may take to stop an arm before a raw TCP stop is sent, s."""
    connect_timeout_s: Annotated[float, Range(0.1, 300.0, "a controller starts within minutes")] = 5.0
    """How long one arm may take to connect, s."""
    gripper: GripperSettings = GripperSettings()

    def __post_init__(self) -> None:
        check_settings(self)
        hosts = {"right_host": self.right_host, "left_host": self.left_host, "push_host": self.push_host}
        if found := [f"{key}: {text}" for key, host in hosts.items() if host is not None and (text := problem(host))]:
            raise SiteError(". ".join(found))
        if self.right_host.lower() == self.left_host.lower():
            raise SiteError(f"right_host and left_host: both arms have the address '{self.right_host}', expected two")
        if self.follow == "high" and self.high_follow_rate_hz < self.fps:
            raise SiteError(
                f"high_follow_rate_hz: found {self.high_follow_rate_hz}, expected at least {self.fps}, the rate 'fps'"
            )
        if self.max_state_age_s < self.push_cycle * PUSH_UNIT_S:
            raise SiteError(
                f"max_state_age_s: found {self.max_state_age_s}, expected at least "
                f"{self.push_cycle * PUSH_UNIT_S:.3g}, the time between two states at 'push_cycle'"
            )

    def host(self, side: str) -> str:
        """Return the address of one arm."""
        return self.right_host if side == "right" else self.left_host
