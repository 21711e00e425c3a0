"""The bytes that travel between clients and policy servers."""

import json
import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
import msgpack
import numpy as np
import pytest

from openpi_client import msgpack_numpy

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "framework.json").read_text())["wire"]

GOLDEN_MESSAGES = {
    "empty": {},
    "meta": {"reset_pose": [0, -1.5, 1.5, 0, 0, 0], "n": 3, "s": "x", "b": b"\x00\x01", "none": None, "t": True},
    "arrays": {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "u8": np.arange(4, dtype=np.uint8),
        "bool": np.array([True, False]),
        "f64": np.array(1.5),
        "i64scalar": np.int64(7),
        "f32scalar": np.float32(0.25),
        "str": np.array("hi"),
    },
}

ARRAYS = npst.arrays(
    dtype=st.one_of(
        npst.boolean_dtypes(),
        npst.integer_dtypes(endianness="?"),
        npst.unsigned_integer_dtypes(endianness="?"),
        npst.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
        npst.unicode_string_dtypes(endianness="?", max_len=5),
        npst.byte_string_dtypes(max_len=5),
        npst.datetime64_dtypes(endianness="?"),
    ),
    shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@pytest.mark.parametrize("name", GOLDEN_MESSAGES)
def test_messages_have_the_bytes_of_the_original(name):
    assert msgpack_numpy.packb(GOLDEN_MESSAGES[name]).hex() == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN_MESSAGES)
def test_the_bytes_of_the_original_are_read_back(name):
    decoded = msgpack_numpy.unpackb(bytes.fromhex(GOLDEN[name]))
    expected = GOLDEN_MESSAGES[name]
    assert decoded.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(decoded[key], value)
        if isinstance(value, np.ndarray | np.generic):
            assert decoded[key].dtype == value.dtype
            assert decoded[key].shape == value.shape


@settings(max_examples=100, deadline=None)
@given(ARRAYS)
def test_arrays_survive_a_round_trip(array):
    decoded = msgpack_numpy.unpackb(msgpack_numpy.packb({"x": array}))["x"]
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


def test_arrays_in_any_memory_order_are_sent_in_c_order():
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for view in (image.transpose(2, 0, 1), image[:, ::-1], np.asfortranarray(image)):
        np.testing.assert_array_equal(msgpack_numpy.unpackb(msgpack_numpy.packb(view)), view)


def test_scalars_keep_their_type():
    for value in (np.bool_(True), np.int8(-3), np.uint64(2**63), np.float16(0.5)):
        decoded = msgpack_numpy.unpackb(msgpack_numpy.packb(value))
        assert type(decoded) is type(value)
        assert decoded == value


def test_decoded_arrays_are_views_unless_they_must_be_writable():
    message = msgpack_numpy.packb(np.zeros(3))
    assert not msgpack_numpy.unpackb(message).flags.writeable
    array = msgpack_numpy.unpackb(message, writable=True)
    array[0] = 1.0
    assert array.flags.owndata


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.zeros(2, dtype="c8"), np.zeros(2, dtype="V4"), np.zeros(1, dtype="f4,i4")]
)
def test_objects_complex_numbers_and_structures_are_not_packed(value):
    with pytest.raises(ValueError, match="cannot pack dtype"):
        msgpack_numpy.packb(value)


def test_other_types_are_not_packed():
    with pytest.raises(TypeError, match=r"cannot pack builtins\.set"):
        msgpack_numpy.packb({"x": {1, 2}})


def _array_map(**changes):
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2], **changes}
    return msgpack.packb({key.encode(): value for key, value in fields.items() if value is not ...})


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "|O"},
        {"dtype": "<c8"},
        {"dtype": "|V8"},
        {"dtype": "<f4,<i4"},
        {"dtype": 7},
        {"dtype": "<U99999999999999"},
        {"dtype": "<m8[nonsense]"},
        {"shape": [3]},
        {"shape": [-1, -2]},
        {"shape": [2.0]},
        {"shape": [True, 2]},
        {"shape": [2**62, 4]},
        {"shape": [1] * 33},
        {"shape": "2"},
        {"data": "text"},
        {"data": bytes(7)},
        {"data": ...},
        {"shape": ...},
        {"dtype": ...},
    ],
    ids=str,
)
def test_malformed_arrays_are_refused(changes):
    with pytest.raises(ValueError, match=r"malformed message: (array: |.*dtype)"):
        msgpack_numpy.unpackb(_array_map(**changes))


def test_a_huge_shape_over_few_bytes_is_refused_before_memory_is_taken():
    with pytest.raises(ValueError, match="8 bytes of data"):
        msgpack_numpy.unpackb(_array_map(shape=[2**30, 2**30]))


@pytest.mark.parametrize("data", [None, [1], {}, 1.5, "x", 300])
def test_malformed_scalars_are_refused(data):
    message = msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": "|u1"})
    if data == 1.5:  # a number of another kind is converted, as the original does
        assert msgpack_numpy.unpackb(message) == 1
    else:
        with pytest.raises(ValueError, match=r"malformed message: (numpy scalar: |invalid literal)"):
            msgpack_numpy.unpackb(message)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_messages_end_in_a_value_error_or_decode(data):
    message = bytearray(msgpack_numpy.packb(GOLDEN_MESSAGES["arrays"]))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    try:
        msgpack_numpy.unpackb(bytes(message[:cut]))
    except ValueError:
        return


def test_nesting_without_end_is_refused():
    with pytest.raises(ValueError, match="malformed message"):
        msgpack_numpy.unpackb(b"\x91" * 100_000 + b"\x00")


def test_a_stream_is_read_message_by_message():
    unpacker = msgpack_numpy.Unpacker()
    unpacker.feed(msgpack_numpy.Packer().pack(np.ones(2)) + msgpack_numpy.packb("end"))
    array, end = list(unpacker)
    np.testing.assert_array_equal(array, np.ones(2))
    assert end == "end"
