"""Numbers and lines on a RealMan controller's wire.

Units (vendor's JSON protocol): joints 0.001 deg, positions 1e-6 m, Euler angles 0.001 rad, quaternions 1e-6, speeds
0.001 RPM and accelerations 0.001 RPM/s with 1 RPM = 6 deg/s. There is one JSON object per line, and lines end in CR LF.
"""

from collections.abc import Iterator, Sequence
import json
import logging
from typing import Any

import numpy as np

from realman.kinematics import ArmVec
from realman.kinematics import Transform

logger = logging.getLogger(__name__)

Message = dict[str, Any]

DEG_S_PER_RPM = 6.0
MAX_LINE_BYTES = 1 << 16
"""A client that sends this much without an end of line does not speak this protocol."""

_MILLI = 1000.0
_MICRO = 1e6


def joints_to_wire(joints: ArmVec) -> list[int]:
    """Convert rad to 0.001 deg."""
    return [round(v) for v in (np.rad2deg(joints) * _MILLI).tolist()]


def joints_from_wire(values: Sequence[float]) -> ArmVec:
    """Convert 0.001 deg to rad.

    Raises:
        ValueError: The values are not six finite numbers.
    """
    if len(values) != 6:
        raise ValueError(f"found {len(values)} joints, expected 6")
    joints = np.deg2rad(np.array(values, dtype=np.float64) / _MILLI)
    if not np.isfinite(joints).all():
        raise ValueError("joints are not finite")
    return joints


def speeds_to_wire(rad_s: ArmVec) -> list[int]:
    """Convert rad/s to 0.001 RPM, or rad/s^2 to 0.001 RPM/s."""
    return [round(v) for v in (np.rad2deg(rad_s) / DEG_S_PER_RPM * _MILLI).tolist()]


def position_to_wire(pose: Transform) -> list[int]:
    """Return the position of a pose in 1e-6 m."""
    return [round(v) for v in (pose[:3, 3] * _MICRO).tolist()]


def euler_to_wire(pose: Transform) -> list[int]:
    """Return rx, ry, rz of a pose in 0.001 rad.

    Formula: R = Rz(rz) Ry(ry) Rx(rx).
    """
    return [round(v * _MILLI) for v in _euler(pose)]


def quaternion_to_wire(pose: Transform) -> list[int]:
    """Return w, x, y, z of a pose in 1e-6."""
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(a / 2), np.sin(a / 2)) for a in _euler(pose))
    quaternion = (
        cx * cy * cz + sx * sy * sz,
        sx * cy * cz - cx * sy * sz,
        cx * sy * cz + sx * cy * sz,
        cx * cy * sz - sx * sy * cz,
    )
    return [round(float(v) * _MICRO) for v in quaternion]


def _euler(pose: Transform) -> tuple[float, float, float]:
    rotation = pose[:3, :3]
    rx = np.arctan2(rotation[2, 1], rotation[2, 2])
    ry = np.arcsin(np.clip(-rotation[2, 0], -1.0, 1.0))
    rz = np.arctan2(rotation[1, 0], rotation[0, 0])
    return float(rx), float(ry), float(rz)


def encode(message: Message) -> bytes:
    """Encode a message as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\r\n"


class LineReader:
    """Splits a byte stream into messages.

    One segment may hold several messages, and one message may span several segments.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add bytes and yield every message that is now complete.

        Lines that are not a JSON object are dropped with a warning.

        Raises:
            ValueError: A line is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in filter(None, map(bytes.strip, lines)):
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict):
                yield message
            else:
                logger.warning("emulator: dropped a line that is not a JSON object: %r", line[:200])
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError(f"no end of line within {MAX_LINE_BYTES} bytes")
