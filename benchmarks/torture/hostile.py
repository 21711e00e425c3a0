"""Messages that no policy client sends.

Every one is made by chance, and none is stored.
"""

from collections.abc import Callable
import contextlib
import random
import socket
import struct
from typing import Any

import msgpack
import numpy as np

from openpi_client import msgpack_numpy
from openpi_client import protocol

_Request = dict[str, Any]
_DTYPES = (
    "<f8",
    "<f4",
    "<f2",
    "<i8",
    "|u1",
    "|b1",
    "<U4",
    "|S3",
    "|O",
    "<c16",
    "<M8[s]",
    "|V8",
    "f8",
    "",
    "<f16",
    7,
    None,
)


def message(rng: random.Random, request: _Request) -> tuple[str, bytes | str]:
    """Return a message and the name of its sort.

    Args:
        rng: The source of chance.
        request: A well-formed request, to be spoiled.
    """
    kind = rng.choice(_KINDS)
    return kind.__name__, kind(rng, request)


def noise(rng: random.Random, _request: _Request) -> bytes:
    """Bytes of no meaning."""
    return rng.randbytes(rng.choice((0, 1, 7, 300, 70_000)))


def text(rng: random.Random, _request: _Request) -> str:
    """A text instead of a binary message."""
    return rng.choice(("", "{}", "hello", '{"state": [1, 2]}', "\0" * 10, "x" * rng.randint(1, 100_000)))


def truncated(rng: random.Random, request: _Request) -> bytes:
    """The beginning of a request."""
    data = msgpack_numpy.packb(request)
    return data[: rng.randrange(len(data))]


def flipped(rng: random.Random, request: _Request) -> bytes:
    """A request in which a few bytes differ, mostly in its structure."""
    data = bytearray(msgpack_numpy.packb(request))
    for _ in range(rng.randint(1, 5)):
        data[rng.randrange(min(len(data), rng.choice((60, 400, len(data)))))] = rng.randrange(256)
    return bytes(data)


def tree(rng: random.Random, _request: _Request) -> bytes:
    """Containers and values at random."""
    return msgpack.packb(_tree(rng, rng.randint(0, 6)), use_bin_type=True, strict_types=False)


def spoiled(rng: random.Random, request: _Request) -> bytes:
    """A request with one value replaced, missing, or too many."""
    spoiled = {**request, "images": dict(request["images"])}
    place = spoiled["images"] if rng.random() < 0.5 else spoiled
    key = rng.choice(sorted(place))
    action = rng.choice(("replace", "replace", "remove", "add"))
    if action == "remove":
        del place[key]
    else:
        place[key if action == "replace" else _text(rng)] = _value(rng)
    return _packed(spoiled)


def options(rng: random.Random, request: _Request) -> bytes:
    """A request with options of random names and values."""
    names = (protocol.DEADLINE_OPTION, protocol.REPLACE_OLDER_OPTION, _text(rng))
    extra = {protocol.REQUEST_OPTIONS_KEY: {rng.choice(names): _value(rng)}}
    if rng.random() < 0.5:
        rest = {name: _value(rng) for name in ("left_over", "actions", "method", "delay", _text(rng))}
        extra = {protocol.RTC_KEY: rng.choice((_value(rng), rest))}
    return _packed({**request, **extra})


def declared(rng: random.Random, request: _Request) -> bytes:
    """Arrays and containers whose announced size does not fit their bytes."""
    if rng.random() < 0.5:
        start = rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb"))
        return b"\x81\xa5state" + start + struct.pack(">I", rng.choice((2**16, 2**31, 2**32 - 1))) + rng.randbytes(20)
    shape = [rng.choice((-1, 0, 1, 3, 2**20, 2**31, 2**62, 1.5, None, "3")) for _ in range(rng.randint(0, 40))]
    fake = {b"__ndarray__": True, b"data": rng.randbytes(24), b"dtype": rng.choice(_DTYPES), b"shape": shape}
    return msgpack.packb({**_plain(request), "state": fake})


def image_bytes(rng: random.Random, request: _Request) -> bytes:
    """An image that begins like a JPEG and goes astray."""
    data = b"\xff\xd8\xff" + rng.randbytes(rng.choice((0, 10, 5000)))
    camera = rng.choice(sorted(request["images"]))
    return _packed({**request, "images": {**request["images"], camera: data}})


def many_numbers(rng: random.Random, request: _Request) -> bytes:
    """Numbers in lists instead of arrays, nested and many."""
    row = [float(rng.random()) for _ in range(rng.choice((14, 1000, 60_000)))]
    rows: Any = [row] * rng.choice((1, 3, 10))
    for _ in range(rng.choice((0, 2, 12))):
        rows = [rows]
    return _packed({**request, rng.choice(("state", _text(rng))): rows})


def closing(rng: random.Random, request: _Request) -> bytes:
    """A request whose sender does not wait for the answer."""
    return _packed(request) if rng.random() < 0.5 else noise(rng, request)


_KINDS: tuple[Callable[[random.Random, _Request], bytes | str], ...] = (
    noise,
    text,
    truncated,
    flipped,
    tree,
    spoiled,
    spoiled,
    options,
    declared,
    image_bytes,
    many_numbers,
    closing,
)


def raw_frames(host: str, port: int, rng: random.Random) -> None:
    """Send broken frames or half a request of HTTP, and vanish."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as sock:
        if rng.random() < 0.3:
            sock.sendall(rng.choice((b"GET / HTTP/1.1\r\nHost:", rng.randbytes(200), b"\r\n" * 50, b"")))
            return
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        sock.recv(4096)
        # A masked frame that announces more than it brings, with an operation code at random.
        first = 0x80 * rng.randint(0, 1) | rng.choice((0, 1, 2, 2, 3, 8, 9, 15))
        size = struct.pack(">Q", rng.choice((200, 2**20, 2**40, 2**62)))
        sock.sendall(bytes((first, 0x80 | 127)) + size + rng.randbytes(4) + rng.randbytes(rng.randint(0, 100)))


def _tree(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.3:
        return _plain(_value(rng))
    children = [_tree(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    if rng.random() < 0.5:
        return children
    return {rng.choice((_text(rng), rng.randint(-5, 5), rng.randbytes(3), None)): child for child in children}


def _value(rng: random.Random) -> Any:
    """A value of any type, with the numbers that programs like least."""
    shape = rng.choice(((14,), (13,), (15,), (14, 1), (), (0,), (48, 64, 3), (3, 48, 64), (1, 1, 3), (2, 2, 4)))
    fill = rng.choice((0.0, np.nan, np.inf, -1e300, 1e30, 255.0))
    return rng.choice(
        (
            np.full(shape, fill),
            np.full(shape, np.nan, "<f2"),
            np.zeros(shape, rng.choice((np.uint8, np.int64, np.bool_, "<U3", "|S2"))),
            None,
            rng.choice((True, -1, 0, 2**63 - 1, -(2**63), 2**64 - 1)),
            rng.choice((float("nan"), float("inf"), 1e308, -0.0)),
            _text(rng),
            rng.randbytes(rng.randint(0, 20)),
            [],
            {},
            [1.0] * 14,
            ["a", 1, None, [2]],
            {"a": {"b": [1, {"c": None}]}},
        )
    )


def _text(rng: random.Random) -> str:
    return rng.choice(
        ("", "state", "x" * 5000, "a\nb\x1b[31m", "\u202e", "../../etc", "%s{0}", "observation/state", "\0")
    )


def _plain(value: Any) -> Any:
    return msgpack.unpackb(msgpack_numpy.packb(value), strict_map_key=False)


def _packed(value: Any) -> bytes:
    return msgpack_numpy.packb(value)
