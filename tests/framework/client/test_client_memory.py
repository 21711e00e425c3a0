"""Freed memory is reused."""

import ctypes
import platform
import subprocess
import sys

import pytest

from openpi_client import memory

# Page faults of copying four megabytes a hundred times, once the setting is made.
COUNT_FAULTS = """
import resource, sys
from openpi_client import memory
assert not int(sys.argv[1]) or memory.keep_freed_memory()
message = bytearray(4_000_000)
def copy_twice():
    first = bytes(message)
    return bytearray(first)
copy_twice()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    copy_twice()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_copies_of_images_use_the_memory_of_earlier_ones():
    faults = int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, "1"], timeout=60))
    # A page is 4 kB or more, so each copy may need a thousand new pages without the setting.
    assert faults < 4000


def test_a_c_library_without_the_setting_is_not_an_error(monkeypatch):
    class Other:
        def __init__(self, name):
            pass

    monkeypatch.setattr(ctypes, "CDLL", Other)
    assert memory.keep_freed_memory() is False
