"""A stop that bypasses the SDK.

It is used when the SDK hangs or lost its connection, and has a TCP connection of its own. A hanging SDK delivers no
state either (1.1.6), so the standstill is checked over the same connection.
"""

import json
import socket
import time
from typing import Any

import numpy as np

from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.kinematics import ArmVec

_MAX_LINE_BYTES = 1 << 16


class RawArm:
    """A direct line-by-line connection to a controller.

    Use it as a context manager.
    """

    def __init__(self, name: str, host: str, port: int, timeout_s: float) -> None:
        """Connect.

        Raises:
            RobotTimeoutError: The controller does not answer.
        """
        self._name = name
        self._timeout_s = timeout_s
        self._rest = b""
        try:
            self._socket = socket.create_connection((host, port), timeout_s)
        except OSError as e:
            raise RobotTimeoutError(f"{name}: no connection to {host}:{port} ({e})") from e

    def __enter__(self) -> "RawArm":
        """Return itself. The connection is already open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._socket.close()

    def stop(self) -> None:
        """Stop at once. The motion cannot be resumed.

        Raises:
            RobotTimeoutError: The stop was not acknowledged in time.
            RobotError: The controller refused to stop.
        """
        if self._ask("set_arm_stop", "arm_stop") is not True:
            raise RobotError(f"{self._name}: the controller refused to stop")

    def joints(self) -> ArmVec:
        """Return the measured joints, rad.

        Raises:
            RobotTimeoutError: The controller did not answer in time.
        """
        return np.deg2rad(np.array(self._ask("get_joint_degree", "joint")[:6]) / 1000.0)

    def _ask(self, command: str, key: str) -> Any:
        """Send a command and return the value of the reply's `key`.

        Other lines, such as events, are skipped.
        """
        until = time.monotonic() + self._timeout_s
        try:
            self._socket.sendall(json.dumps({"command": command}).encode() + b"\r\n")
            while len(self._rest) < _MAX_LINE_BYTES:
                self._socket.settimeout(max(until - time.monotonic(), 1e-3))
                data = self._socket.recv(4096)
                if not data:
                    raise ConnectionError("the controller closed the connection")
                *lines, self._rest = (self._rest + data).split(b"\n")
                for reply in map(_parse, lines):
                    if key in reply:
                        return reply[key]
            raise ConnectionError("the answer has no end")
        except OSError as e:
            raise RobotTimeoutError(f"{self._name}: '{command}' was not acknowledged over TCP ({e})") from e


def _parse(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}
