"""The few bytes of a JPEG that tell, without decoding it, whether it is whole and how large its picture is."""

_START = b"\xff\xd8"
_END = b"\xff\xd9"

# Start-of-frame markers, ITU-T T.81 table B.1: C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def is_whole(data: bytes) -> bool:
    """Whether `data` starts and ends as a JPEG does."""
    return data.startswith(_START) and data.endswith(_END)


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels, from the frame header.

    Raises:
        ValueError: Not a JPEG, cut off, or not a colour picture; the text says which.
    """
    if not data.startswith(_START):
        raise ValueError(f"is no JPEG (starts with {data[:4].hex() or 'nothing'}, expected ffd8)")
    if not data.endswith(_END):
        raise ValueError(f"is a JPEG cut off after {len(data)} bytes")
    at = len(_START)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte before the marker
            at += 1
        elif marker in _FRAME_MARKERS:
            # Segment: marker (2), length (2), bits per sample (1), height (2), width (2), components (1).
            if data[at + 9] != 3:
                raise ValueError(f"is a JPEG of {data[at + 9]} channels, expected 3")
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("is a JPEG without a frame header")
