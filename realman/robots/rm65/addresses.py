"""Check how the arms' addresses are written, and look up names.

The controllers speak IPv4, and an arm's state is matched by its sender's address. A name is looked up
once in each connect, so that commands and pushes belong to the same machine.
"""

import ipaddress
import queue
import re
import socket
import threading

from realman.errors import RobotError
from realman.errors import RobotTimeoutError

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.IGNORECASE)
# What a C library reads as a number: '192.168.1' is 192.168.0.1, and the 010 of '192.168.1.010' is 8.
_NUMBERS = re.compile(r"[0-9.]+|(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*", re.IGNORECASE)


def problem(host: str) -> str | None:
    """Return what is wrong with the spelling of a host, if anything."""
    if _NUMBERS.fullmatch(host):
        try:
            address = ipaddress.IPv4Address(host)
        except ValueError:
            return f"found '{host}', expected four numbers from 0 to 255 without leading zeros, such as 192.168.1.18"
        if address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
            return f"found '{host}', expected the address of one machine"
        return None
    if ":" in host:
        return f"found '{host}', expected an IPv4 address without a port, such as 192.168.1.18"
    if not _NAME.fullmatch(host):
        return f"found '{host}', expected an IPv4 address such as 192.168.1.18, or the name of a machine"
    return None


def resolve(name: str, host: str, timeout_s: float) -> str:
    """Return the IPv4 address of a host.

    Args:
        name: What the host is, for messages.
        host: An IPv4 address, or a name.
        timeout_s: How long a lookup may take, s.

    Raises:
        RobotTimeoutError: The name server does not answer in time.
        RobotError: The name is unknown, or has no IPv4 address.
    """
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass

    found: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]))
        except (OSError, UnicodeError) as e:
            found.put(e)

    # A lookup has no time limit of its own, so it must not keep the process alive.
    threading.Thread(target=look_up, daemon=True).start()
    remedy = "Write the address, such as 192.168.1.18"
    try:
        answer = found.get(timeout=timeout_s)
    except queue.Empty:
        raise RobotTimeoutError(
            f"{name}: the name '{host}' was not looked up within {timeout_s:g} s. {remedy}"
        ) from None
    if isinstance(answer, Exception):
        raise RobotError(f"{name}: the name '{host}' has no IPv4 address here ({answer}). {remedy}") from answer
    return answer
