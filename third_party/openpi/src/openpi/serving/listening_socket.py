"""Reserves a port for a server."""

import errno
import socket

from openpi.shared.errors import UserError


class AddressError(UserError, OSError):
    """A server cannot listen at this address."""


def bind(host: str, port: int | None) -> socket.socket:
    """Reserve a TCP port without accepting connections yet.

    Until the server listens, clients are refused and try again.

    Args:
        host: Name or address to listen at. `0.0.0.0` is every IPv4 network of this machine.
        port: TCP port. 0 or None takes any free one.

    Raises:
        AddressError: The port is taken, or the address does not belong to this machine.
    """
    try:
        found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as e:
        raise AddressError(
            f"cannot listen at '{host}': {e.strerror}. Give an address of this machine with --host"
        ) from e
    # 'localhost' may be both ::1 and 127.0.0.1. Clients try at least the latter.
    family, kind, proto, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as e:
        sock.close()
        raise explain(e, host, port) from e
    return sock


def explain(error: OSError, host: str, port: int | None) -> AddressError:
    """Return a one-line error that says why a server cannot listen."""
    if error.errno == errno.EADDRINUSE:
        return AddressError(
            f"port {port} of {host} is taken by another program. Stop it or choose another port with --port"
        )
    return AddressError(f"cannot listen at {host}:{port} ({error.strerror or error}). See --host and --port")
