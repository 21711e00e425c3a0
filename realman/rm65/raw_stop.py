"""Stop an arm without the SDK: one line over a fresh TCP connection, for when the SDK hangs or lost its own."""

import json
import socket
import time

from realman.errors import RobotError
from realman.errors import RobotTimeoutError

_REQUEST = b'{"command":"set_arm_stop"}\r\n'
_REPLY = "set_arm_stop"


def stop_over_tcp(name: str, host: str, port: int, timeout_s: float) -> None:
    """Stop an arm at once; the motion cannot be resumed.

    Raises:
        RobotTimeoutError: The controller could not be reached or did not acknowledge in time.
        RobotError: The controller said that it did not stop.
    """
    until = time.monotonic() + timeout_s
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(_REQUEST)
            buffer = b""
            while True:
                connection.settimeout(max(until - time.monotonic(), 1e-3))
                data = connection.recv(4096)
                if not data:
                    raise ConnectionError("closed before the acknowledgement")
                *lines, buffer = (buffer + data).split(b"\n")
                if _is_acknowledged(name, lines):
                    return
    except OSError as e:
        raise RobotTimeoutError(f"{name}: no acknowledged stop over TCP at {host}:{port} ({e})") from e


def _is_acknowledged(name: str, lines: list[bytes]) -> bool:
    for line in lines:
        try:
            reply = json.loads(line)
        except ValueError:
            continue
        if isinstance(reply, dict) and reply.get("command") == _REPLY:
            if reply.get("arm_stop") is True:
                return True
            raise RobotError(f"{name}: the controller refused to stop")
    return False
