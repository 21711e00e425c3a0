"""Settings of an emulated arm: its address, identity and limits."""

import contextlib
import dataclasses
import functools
import socket
from typing import Annotated

import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.kinematics import ArmVec
from realman.ranges import ListeningPort
from realman.ranges import Port
from realman.ranges import Range
from realman.ranges import check_settings

TCP_PORT = 8080
"""Port of a RealMan controller."""

PUSH_PORT = 8089
"""UDP port that a controller pushes its state to."""

# RM65-B acceleration: the controller reports 100 RPM/s.
JOINT_ACCELERATION_RAD_S2 = np.deg2rad(np.full(6, 600.0))

# Elbow and wrist bent: away from the singular poses q3 = 0 and q5 = 0.
HOME_DEG = (0.0, 20.0, 70.0, 0.0, 90.0, 0.0)

_PORT_TRIES = 20

Generation = Annotated[int, Range(3, 4, "the generations that exist")]
_TURN = Range(-360.0, 360.0, "a full turn to each side")


@dataclasses.dataclass(frozen=True)
class ArmSettings:
    """One emulated controller."""

    side: str
    """'right' or 'left'."""
    host: str = "127.0.0.1"
    """Address to listen on and to push from. Each arm needs its own, because the SDK distinguishes arms by it."""
    port: ListeningPort = TCP_PORT
    """TCP port. 0 takes a free one."""
    push_port: Port = PUSH_PORT
    """UDP port that the state is pushed to until a client changes it."""
    push_cycle: Annotated[int, Range(1, 1000, "in units of 5 ms")] = 1
    """Push period in units of 5 ms."""
    generation: Generation = 3
    """Controller generation, 3 or 4. They differ in their software report and in a few commands."""
    product: str = "RM65-BI"
    """Product name. The SDK reads the arm's model from it."""
    home_deg: tuple[Annotated[float, _TURN], ...] = HOME_DEG
    """Joints at power-on, deg."""
    home_gripper: Annotated[float, Range(0.0, 1.0, "closed to open")] = 1.0
    """Gripper opening at power-on, 0..1."""
    joint_limit_deg: tuple[Annotated[float, _TURN], ...] = tuple(np.rad2deg(spec.ARM_UPPER_RAD).tolist())
    """Largest angle of each joint to both sides, deg. A controller's limits may be narrower than the arm's."""

    def __post_init__(self) -> None:
        if self.side not in spec.SIDES:
            raise ValueError(f"arm: side is '{self.side}', expected one of {', '.join(spec.SIDES)}")
        check_settings(self)

    @property
    def home(self) -> ArmVec:
        """Joints at power-on, rad."""
        return np.deg2rad(self.home_deg)

    @property
    def joint_limit(self) -> ArmVec:
        """Largest angle of each joint to both sides, rad."""
        return np.deg2rad(self.joint_limit_deg)


HOSTS = {"right": "127.0.0.1", "left": "127.0.0.2"}
"""Loopback addresses of two arms on this machine. Linux has all of 127.x. On other systems you must add an alias."""


def two_arms(
    port: int = TCP_PORT, push_port: int = PUSH_PORT, generation: int = 3, home: JointVec | None = None
) -> tuple[ArmSettings, ...]:
    """Return a right and a left arm on loopback.

    Args:
        port: TCP port of both arms.
        push_port: UDP port that both push their state to.
        generation: Generation of both controllers.
        home: Power-on position of both arms (14,), rad and gripper opening. None means each arm's own default.
    """
    arms = tuple(ArmSettings(side, HOSTS[side], port, push_port, generation=generation) for side in spec.SIDES)
    if home is None:
        return arms
    homes = {arm.side: home[spec.ARM_SLICES[arm.side]] for arm in arms}
    return tuple(
        dataclasses.replace(
            arm,
            home_deg=tuple(np.rad2deg(homes[arm.side][:6]).tolist()),
            home_gripper=float(homes[arm.side][6]),
        )
        for arm in arms
    )


def free_ports() -> tuple[int, int]:
    """Return a TCP port free at both addresses, and a UDP port.

    The TCP port stays reserved until the next call, so that no connection of another process takes it before an
    emulator listens. The UDP port belongs to this process and is the same at each call: the SDK (1.1.6) cannot open a
    sixth one in a process's lifetime.
    """
    _reservation.close()
    for _ in range(_PORT_TRIES):
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            port = _bind(sockets, HOSTS["right"], 0)
            _bind(sockets, HOSTS["left"], port)
            _reservation.push(sockets.pop_all())
            return port, _own_udp_port()
    raise OSError(f"no TCP port is free at both {HOSTS['right']} and {HOSTS['left']} after {_PORT_TRIES} tries")


_reservation = contextlib.ExitStack()


def _bind(sockets: contextlib.ExitStack, host: str, port: int) -> int:
    """Bind without listening.

    A server that listens with SO_REUSEADDR, as asyncio's do, can still take the port.
    """
    tcp = sockets.enter_context(socket.socket())
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind((host, port))
    return int(tcp.getsockname()[1])


@functools.cache
def _own_udp_port() -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("", 0))
        return int(udp.getsockname()[1])
