"""Keep the memory of this process on the host small.

The C library keeps much of the memory that the compiler and the threads have freed.
"""

from collections.abc import Callable
import ctypes
import logging
import sys

import psutil

logger = logging.getLogger(__name__)

# glibc gives every thread its own arena, and memory freed in one arena cannot be used by the others. With the threads of
# XLA and of the loader, a process grows to several times what it holds. A few arenas are enough for these threads.
_ARENAS = 2
_M_ARENA_MAX = -8  # malloc.h


def limit_arenas() -> None:
    """Let all threads share a few arenas.

    This works only before the threads are started, and only with glibc.
    """
    if mallopt := _glibc("mallopt"):
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return freed memory to the system.

    Call this after large work such as compiling.
    """
    before = psutil.Process().memory_info().rss
    if trim := _glibc("malloc_trim"):
        trim(0)
        freed = before - psutil.Process().memory_info().rss
        logger.debug("returned %.2f GiB to the system", freed / 2**30)


def _glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
