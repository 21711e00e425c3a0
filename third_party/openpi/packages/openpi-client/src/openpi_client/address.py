"""Builds the websocket address of a server from what the user gives."""

import urllib.parse


def server_uri(host: str, port: int | None) -> str:
    """Return the address of a policy server.

    Args:
        host: A host name, an IPv4 or IPv6 address, or a whole `ws://` or `wss://` address. The wildcard `0.0.0.0`, at which
            servers listen, stands for this machine.
        port: TCP port. None leaves it to `host` or to the scheme's default.
    """
    if not host.startswith(("ws://", "wss://")):
        host = "127.0.0.1" if host == "0.0.0.0" else host
        is_bare_ipv6 = ":" in host and not host.startswith("[") and host.count(":") > 1
        host = f"ws://[{host}]" if is_bare_ipv6 else f"ws://{host}"
    parts = urllib.parse.urlsplit(host)
    netloc = parts.netloc if port is None else f"{parts.netloc}:{port}"
    return urllib.parse.urlunsplit(parts._replace(netloc=netloc))
