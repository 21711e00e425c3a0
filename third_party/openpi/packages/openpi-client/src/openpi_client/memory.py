"""Keeps the memory of camera images at hand from one message to the next."""

import ctypes

# Names and numbers of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# The largest that mallopt accepts on 64-bit machines; larger blocks still go back to the system at once.
_LARGEST_KEPT_BYTES = 32 * 2**20
_KEPT_BYTES = 128 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep up to 128 MB of freed memory instead of giving it back to the system at once.

    By default each copy of an image or message is fresh memory, whose every page the system has to provide and clear: for four
    raw 480x640 images that takes longer than all copying. A setting of the whole process, so a matter of programs, not of
    libraries.

    Returns:
        Whether the C library knows the setting (glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
