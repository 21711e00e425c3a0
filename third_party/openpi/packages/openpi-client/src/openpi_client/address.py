"""Builds the websocket address of a server from what the user gives."""

import urllib.parse

from openpi_client.errors import PolicyClientError


def server_uri(host: str, port: int | None) -> str:
    """Return the address of a policy server.

    Args:
        host: A host name, an IPv4 or IPv6 address, or a whole `ws://` or `wss://` address. The wildcard `0.0.0.0`, at which
            servers listen, stands for this machine.
        port: TCP port. None leaves it to `host` or to the scheme's default.

    Raises:
        PolicyClientError: No connection can be made to such an address.
    """
    given = host
    if not host.startswith(("ws://", "wss://")):
        host = "127.0.0.1" if host == "0.0.0.0" else host
        is_bare_ipv6 = ":" in host and not host.startswith("[") and host.count(":") > 1
        host = f"ws://[{host}]" if is_bare_ipv6 else f"ws://{host}"
    try:
        parts = urllib.parse.urlsplit(host)
        netloc = parts.netloc if port is None else f"{parts.netloc}:{port}"
        uri = urllib.parse.urlunsplit(parts._replace(netloc=netloc))
        is_address = _is_address(urllib.parse.urlsplit(uri)) and given.isprintable() and " " not in given
    except ValueError:
        is_address = False
    if not is_address:
        raise PolicyClientError(
            f"policy server: found the host {given!r:.80}, expected a name or an address such as 192.168.1.20, and its port as "
            "a number from 1 to 65535 of its own"
        )
    return uri


def _is_address(parts: urllib.parse.SplitResult) -> bool:
    """Return whether an address has a usable host.

    Raises:
        ValueError: Its port or its host name cannot be used.
    """
    # The port is read to check it, and the name is encoded as for a lookup.
    _ = parts.port
    return bool((parts.hostname or "").encode("idna"))
