"""CRC-32C (Castagnoli) in numpy, at some hundred MB per second.

Google Cloud Storage gives this checksum for every object.

A CRC is linear: the CRC of a text is the XOR of the CRCs of its pieces, each extended by the length of what follows it. So a
block is cut into thousands of lanes, whose CRCs are computed in parallel and then joined in pairs.
"""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reflected

_LANE_BYTES = 64
_BLOCK_BYTES = 1 << 20


class Crc32c:
    """Computes the checksum piece by piece, with the interface of `hashlib`."""

    def __init__(self) -> None:
        self._state = 0xFFFFFFFF
        self._waiting = bytearray()

    def update(self, data: bytes) -> None:
        """Append bytes."""
        self._waiting += data
        while len(self._waiting) >= _BLOCK_BYTES:
            self._state = _append(self._state, bytes(self._waiting[:_BLOCK_BYTES]))
            del self._waiting[:_BLOCK_BYTES]

    def digest(self) -> bytes:
        """Return the checksum of all bytes so far, most significant byte first."""
        return (_append(self._state, bytes(self._waiting)) ^ 0xFFFFFFFF).to_bytes(4, "big")


def _append(state: int, block: bytes) -> int:
    return _append_zeros(state, len(block)) ^ _block_crc(block)


def _block_crc(block: bytes) -> int:
    """Return the CRC of a block, starting from 0.

    Because it starts from 0, zeros in front of the block change nothing.
    """
    num_lanes = 1 << max(0, -(-len(block) // _LANE_BYTES) - 1).bit_length()
    padded = np.zeros(num_lanes * _LANE_BYTES, np.uint8)
    padded[len(padded) - len(block) :] = np.frombuffer(block, np.uint8)
    table = _pair_table()
    crcs = np.zeros(num_lanes, np.uint32)
    for pairs in np.ascontiguousarray(padded.view("<u2").reshape(num_lanes, -1).T):
        crcs = table[(crcs ^ pairs) & 0xFFFF] ^ (crcs >> 16)
    level = _LANE_BYTES.bit_length() - 1
    while len(crcs) > 1:
        crcs = _apply(level, crcs[0::2]) ^ crcs[1::2]
        level += 1
    return int(crcs[0])


def _append_zeros(state: int, num_bytes: int) -> int:
    """Return the CRC of a text after `num_bytes` zeros were appended."""
    value = np.array([state], np.uint32)
    for level in range(num_bytes.bit_length()):
        if num_bytes >> level & 1:
            value = _apply(level, value)
    return int(value[0])


def _apply(level: int, crcs: np.ndarray) -> np.ndarray:
    """Extend CRCs by 2**level zeros."""
    tables = _zeros_tables(level)
    moved = tables[0][crcs & 0xFF]
    for i in (1, 2, 3):
        moved ^= tables[i][(crcs >> (8 * i)) & 0xFF]
    return moved


@functools.cache
def _byte_table() -> np.ndarray:
    """Return what each byte becomes when it is shifted out."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@functools.cache
def _pair_table() -> np.ndarray:
    """Return what each pair of bytes becomes when it is shifted out."""
    pairs = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        pairs = _byte_table()[pairs & 0xFF] ^ (pairs >> 8)
    return pairs


@functools.cache
def _zeros_tables(level: int) -> np.ndarray:
    """Return what each byte of a CRC becomes after 2**level zeros.

    The table is [4, 256].
    """
    values = np.arange(256, dtype=np.uint32)[None] << (8 * np.arange(4, dtype=np.uint32)[:, None])
    if level == 0:
        return _byte_table()[values & 0xFF] ^ (values >> 8)
    return _apply(level - 1, _apply(level - 1, values))
