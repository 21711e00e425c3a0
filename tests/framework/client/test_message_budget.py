"""Bounds on the work of one message: what is counted, and what is refused before it takes memory."""

import time
import tracemalloc

import msgpack
import numpy as np
import pytest

from openpi_client import message_budget
from openpi_client import msgpack_numpy


@pytest.mark.parametrize(
    ("content", "num_values"),
    [
        (1, 1),
        ("text", 1),
        ([], 1),
        ([1, -1, None, True, 1.5, 2**40, -(2**40)], 8),
        ({"a": 1}, 3),
        ({"a": [[], [1]], "b": {}}, 8),
        (["x" * 31, "x" * 32, "x" * 300, "x" * 70_000, b"", b"x" * 70_000], 7),
        (list(range(70)), 71),
        ({str(n): n for n in range(300)}, 601),
        (msgpack.ExtType(5, b"1234"), 1),
        ([msgpack.ExtType(5, b"x" * n) for n in (1, 2, 4, 8, 16, 3, 300)], 8),
        ({"state": np.zeros(14)}, 12),
    ],
)
def test_every_value_of_a_message_is_counted_and_arrays_count_as_one(content, num_values):
    assert message_budget.check(msgpack_numpy.packb(content)) == num_values


def test_as_many_values_as_allowed_are_decoded_and_one_more_is_not():
    most = message_budget.MAX_VALUES - 1
    assert msgpack_numpy.unpackb(msgpack.packb([0.5] * most)) == [0.5] * most
    with pytest.raises(ValueError, match=r"more than 8192 values in lists and dicts\. Send numbers as arrays"):
        msgpack_numpy.unpackb(msgpack.packb([0.5] * (most + 1)))


def _nested(depth):
    return b"\x91" * depth + b"\x00"


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (msgpack.packb([[0.5] * 100] * 1000), "more than 8192 values"),
        (msgpack.packb({str(n): n for n in range(40_000)}), "more than 8192 values"),
        (msgpack_numpy.packb([np.zeros(1)] * 10_000), "more than 8192 values"),
        (_nested(33), "more than 32 levels"),
        (msgpack.packb({"a": {"b": _nested(0)}})[:-1], "ends in the middle"),
        (b"\xdd\x00\x00\x1f\xff" * 30, "ends in the middle of a list or dict"),
        (b"\xdf\xff\xff\xff\xff", "more than 8192 values"),
        (b"\xc6\xff\xff\xff\xff", "ends in the middle of a value"),
        (msgpack.packb("x" * (2**20 + 1)), "a value of 1048577 bytes, expected at most 1048576"),
        (msgpack.packb(b"x" * (2**25 + 1)), "a value of 33554433 bytes, expected at most 33554432"),
        (b"\xc1", "byte 0xc1"),
        (b"", "ends in the middle"),
    ],
)
def test_messages_beyond_a_bound_are_refused_by_name_and_take_no_memory(message, problem):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^malformed message: .*{problem}"):
            msgpack_numpy.unpackb(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_the_deepest_message_allowed_is_decoded():
    assert message_budget.check(_nested(32)) == 33
    content = msgpack_numpy.unpackb(_nested(32))
    for _ in range(32):
        (content,) = content
    assert content == 0


def test_a_large_message_of_numbers_is_refused_long_before_its_end():
    message = msgpack.packb([[0.5] * 1000] * 2000)
    assert len(message) > 15e6
    start_s = time.thread_time()
    with pytest.raises(ValueError, match="more than 8192 values"):
        message_budget.check(message)
    # Processor time of this thread, which other programs do not change. A walk over all numbers takes ten times as long.
    assert time.thread_time() - start_s < 0.2
