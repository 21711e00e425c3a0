"""Numpy arrays inside msgpack messages, without pickle.

On the wire, an array is a map with byte keys in this order: `__ndarray__` is true, `data` holds the C-order bytes, `dtype` is
numpy's type string with its byte order, and `shape` is a list of ints. A numpy scalar is a map of `__npgeneric__` (true),
`data` (a native value) and `dtype`. Everything else is plain msgpack, so Python ints, floats, strings, bytes, lists and dicts
(keys str or bytes) pass too.

Decoding trusts nothing. It accepts only the types of a closed list, and only when the bytes fill the shape exactly.
"""

import functools
import math
import re
from typing import Any

import msgpack
import numpy as np

from openpi_client import message_budget

# Fixed-size plain data only: bool, integers, floats, text, bytes, dates. Never objects, structures or raw memory.
_DTYPE_PATTERN = re.compile(
    r"\|b1|[<>|][iu][1248]|[<>]f[248]|[<>]U[1-9]\d{0,8}|\|S[1-9]\d{0,8}|[<>][mM]8(\[\d*[a-zA-Z]+\])?"
)

# numpy 1 allows 32 dimensions and numpy 2 allows 64. Both can read our messages.
_MAX_DIMS = 32


def pack_array(value: Any) -> Any:
    """Convert an array or numpy scalar to its map.

    This is the `default` hook of msgpack.

    Raises:
        TypeError: `value` has a type that messages cannot hold.
        ValueError: The array holds objects, structures or complex numbers.
    """
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(
            f"cannot pack {type(value).__module__}.{type(value).__qualname__}. Convert it with numpy.asarray"
        )
    dtype = value.dtype.str
    if not _DTYPE_PATTERN.fullmatch(dtype):
        raise ValueError(
            f"cannot pack dtype {value.dtype}, expected bool, int, uint, float16-64, str, bytes or datetime64"
        )
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": _raw_bytes(value), b"dtype": dtype, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype}


def unpack_array(obj: dict[Any, Any], *, writable: bool = False) -> Any:
    """Convert a map made by `pack_array` back to its array or scalar.

    This is the `object_hook` of msgpack.

    Args:
        obj: Any decoded map. Maps that do not stand for an array are returned as they are.
        writable: Copy array data. Otherwise arrays are read-only views of the received message.

    Raises:
        ValueError: The map claims to be an array, but fields are missing, its type is outside the closed list, or the number
            of bytes does not fit the shape.
    """
    if b"__ndarray__" in obj:
        dtype = _checked_dtype(obj)
        array = np.ndarray(shape=_checked_shape(obj, dtype), dtype=dtype, buffer=obj[b"data"])
        return array.copy() if writable else array
    if b"__npgeneric__" in obj:
        data = obj.get(b"data")
        if not isinstance(data, bool | int | float | str | bytes):
            raise ValueError(f"numpy scalar: data is {type(data).__name__}, expected bool, int, float, str or bytes")
        try:
            value = _checked_dtype(obj).type(data)
        except (TypeError, OverflowError) as e:
            raise ValueError(f"numpy scalar: {e}") from e
        # numpy 1.26 wraps 300 to uint8 without an error.
        if isinstance(data, int) and value.dtype.kind in "iu" and value != data:
            raise ValueError(f"numpy scalar: {data} does not fit {value.dtype}")
        return value
    return obj


def unpackb(data: bytes | memoryview, *, writable: bool = False) -> Any:
    """Decode one whole message.

    Args:
        data: The message.
        writable: Give every array its own memory. Otherwise arrays are read-only views into `data`.

    Raises:
        ValueError: `data` is not exactly one well-formed message, or exceeds a bound of `openpi_client.message_budget`.
    """
    try:
        message_budget.check(data)
        return msgpack.unpackb(
            data,
            object_hook=lambda obj: unpack_array(obj, writable=writable),
            # The budget has counted the whole message, so single lists need no bound of their own.
            max_array_len=message_budget.MAX_VALUES,
            max_map_len=message_budget.MAX_VALUES,
        )
    except (ValueError, msgpack.UnpackException) as e:
        raise ValueError(f"malformed message: {str(e) or type(e).__name__}") from e


Packer = functools.partial(msgpack.Packer, default=pack_array)
packb = functools.partial(msgpack.packb, default=pack_array)
Unpacker = functools.partial(msgpack.Unpacker, object_hook=unpack_array)


def _raw_bytes(array: np.ndarray) -> memoryview:
    """Return the C-order bytes of an array, without a copy if possible."""
    # The view as plain bytes admits types without a buffer format of their own (dates, text).
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _checked_dtype(obj: dict[Any, Any]) -> np.dtype:
    name = obj.get(b"dtype")
    if not isinstance(name, str) or not _DTYPE_PATTERN.fullmatch(name):
        raise ValueError(f"array: dtype {name!r:.40} is not allowed")
    try:
        return np.dtype(name)
    except TypeError as e:
        raise ValueError(f"array: dtype {name!r:.40} does not exist") from e


def _checked_shape(obj: dict[Any, Any], dtype: np.dtype) -> tuple[int, ...]:
    shape, data = obj.get(b"shape"), obj.get(b"data")
    if not isinstance(shape, list | tuple) or len(shape) > _MAX_DIMS:
        raise ValueError(f"array: shape is not a list, expected a list of at most {_MAX_DIMS} sizes")
    if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise ValueError("array: shape holds other values than sizes, expected integers from 0 to 2**31 - 1")
    if not isinstance(data, bytes):
        raise ValueError(f"array: data is {type(data).__name__}, expected bytes")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"array: {len(data)} bytes of data, expected {expected} for {dtype} {tuple(shape)}")
    return tuple(shape)
