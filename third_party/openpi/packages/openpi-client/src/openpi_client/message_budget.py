"""Bounds the work that decoding one message takes.

A message of a few bytes can announce lists that take gigabytes, and a large one can hold millions of single numbers. The
bounds here are counted before anything is decoded, from the headers of the values alone. An array of any
size counts as one value.
"""

MAX_VALUES = 2**13
"""Values of a message: entries of lists, keys and values of dicts, at any depth. A number in an array is none."""

MAX_DEPTH = 32
"""Levels of lists and dicts. An observation has four, its arrays included."""

MAX_BLOB_BYTES = 32 * 2**20
"""Bytes of one array or image. Decoding copies it in one step that nothing can interrupt."""

MAX_TEXT_BYTES = 2**20
"""Bytes of one text. Each of its characters is checked, also in one step."""

# Sizes by the first byte of a value (msgpack specification): how many bytes hold the length, and how many always follow.
_NUM_BLOB_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_NUM_EXTENSION_LENGTH_BYTES = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_TEXTS = frozenset((0xD9, 0xDA, 0xDB))
_NUM_LIST_LENGTH_BYTES = {0xDC: 2, 0xDD: 4}
_NUM_DICT_LENGTH_BYTES = {0xDE: 2, 0xDF: 4}
_NUM_FIXED_BYTES = {
    **dict.fromkeys(range(0x80), 0),
    **{0xA0 + length: length for length in range(0x20)},
    **dict.fromkeys((0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)), 0),
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
}
_HAS_HEADER = -1
_FIXED_BYTES_OF = tuple(_NUM_FIXED_BYTES.get(kind, _HAS_HEADER) for kind in range(0x100))


def check(message: bytes | memoryview, max_values: int = MAX_VALUES) -> int:
    """Refuse a message that would take too much work to decode.

    Whether the message is well-formed beyond that is left to its decoder.

    Args:
        message: As it arrived.
        max_values: Refuse more values than these.

    Returns:
        The number of its values.

    Raises:
        ValueError: A bound of this module is exceeded, or the message ends in the middle of a value.
    """
    num_values = 1
    place, end = 0, len(message)
    open_levels = [1]  # how many values are to come at each level
    while open_levels:
        # The values of one level, until one of them opens the next.
        for num_left in range(open_levels.pop() - 1, -1, -1):
            if place >= end:
                raise ValueError("it ends in the middle of a value")
            kind = message[place]
            place += 1
            if (num_bytes := _FIXED_BYTES_OF[kind]) != _HAS_HEADER:
                place += num_bytes
                continue
            num_children, num_bytes, place = _read_header(message, kind, place)
            if num_bytes:
                _check_blob(num_bytes, end - place, MAX_TEXT_BYTES if kind in _TEXTS else MAX_BLOB_BYTES)
                place += num_bytes
            if num_children:
                num_values += num_children
                open_levels += [num_left, num_children]
                if num_values > max_values:
                    raise ValueError(f"more than {max_values} values in lists and dicts. Send numbers as arrays")
                _check_container(num_children, end - place, len(open_levels) - 1)
                break
    return num_values


def _read_header(message: bytes | memoryview, kind: int, place: int) -> tuple[int, int, int]:
    """Return the number of values and of bytes inside, and their place."""
    if 0x80 <= kind <= 0x8F:
        return 2 * (kind & 0x0F), 0, place
    if 0x90 <= kind <= 0x9F:
        return kind & 0x0F, 0, place
    for lengths, values_per_entry, extra_bytes in (
        (_NUM_BLOB_LENGTH_BYTES, 0, 0),
        (_NUM_EXTENSION_LENGTH_BYTES, 0, 1),
        (_NUM_LIST_LENGTH_BYTES, 1, 0),
        (_NUM_DICT_LENGTH_BYTES, 2, 0),
    ):
        if kind in lengths:
            begin = place + lengths[kind]
            length = int.from_bytes(message[place:begin], "big")
            return values_per_entry * length, 0 if values_per_entry else length + extra_bytes, begin
    raise ValueError(f"it holds the byte 0x{kind:02x} where a value begins")


def _check_blob(num_bytes: int, num_left: int, limit: int) -> None:
    if num_bytes > num_left:
        raise ValueError(f"it ends in the middle of a value, {num_bytes - num_left} bytes early")
    if num_bytes > limit:
        raise ValueError(f"a value of {num_bytes} bytes, expected at most {limit}. Send a smaller array, image or text")


def _check_container(num_children: int, num_left: int, depth: int) -> None:
    # Each value takes a byte at least. Without this, an announced length alone would claim memory.
    if num_children > num_left:
        raise ValueError("it ends in the middle of a list or dict")
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels of lists and dicts. Send it flatter")
