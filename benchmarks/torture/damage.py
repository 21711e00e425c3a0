"""Ways in which a file gets damaged.

Each is a pure function of the bytes and of chance.
"""

from collections.abc import Callable
import random

Damage = Callable[[bytes, random.Random], bytes]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut the end off, as a full disk does."""
    return data[: rng.randrange(len(data))]


def empty(_data: bytes, _rng: random.Random) -> bytes:
    """Leave nothing."""
    return b""


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight single bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def scribble(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a range with noise."""
    start, size = _range(data, rng)
    return data[:start] + rng.randbytes(size) + data[start + size :]


def zero(data: bytes, rng: random.Random) -> bytes:
    """Zero a range, as a crashed file system does."""
    start, size = _range(data, rng)
    return data[:start] + bytes(size) + data[start + size :]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Exchange two blocks of equal size."""
    size = rng.randint(1, max(1, min(4096, len(data) // 3)))
    first = rng.randrange(max(1, len(data) - 2 * size))
    second = rng.randint(first + size, max(first + size, len(data) - size))
    block, other = data[first : first + size], data[second : second + size]
    return data[:first] + other + data[first + size : second] + block + data[second + size :]


def append(data: bytes, rng: random.Random) -> bytes:
    """Put noise behind the end."""
    return data + rng.randbytes(rng.randint(1, 1000))


def head(data: bytes, rng: random.Random) -> bytes:
    """Flip a byte near the beginning, where formats keep their structure."""
    changed = bytearray(data)
    changed[rng.randrange(min(len(changed), 512))] ^= rng.randint(1, 255)
    return bytes(changed)


def _range(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, rng.randint(1, max(1, min(len(data) - start, rng.choice((8, 512, 65536)))))


ALL: dict[str, Damage] = {f.__name__: f for f in (truncate, empty, flip_bits, scribble, zero, swap, append, head)}
