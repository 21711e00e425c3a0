"""Decide whether the bytes of a JPEG are all there."""

import numpy as np

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_SCAN = 0xDA
# Markers without a segment: TEM, RST0..7, SOI (ITU-T T.81 table B.1).
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


def is_jpeg(data: np.ndarray) -> bool:
    """Return whether encoded bytes (n,) begin like a JPEG."""
    return data[:2].tobytes() == _START


def is_whole(data: np.ndarray) -> bool:
    """Return whether the JPEG in bytes (n,) has its end.

    Recorders pad JPEGs or write other bytes behind them, which decoders ignore. A thumbnail in the header may have an
    end of its own, which does not count.
    """
    content = data.tobytes()
    at = len(_START)
    # Walk over the header's segments to the first scan. In a scan, ff d9 is the end and nothing else.
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == _SCAN:
            return content.find(_END, at) >= 0
        if marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return False
