"""The persistent cache of compiled programs."""

import logging
import os
import pathlib

import jax

from openpi_client import places

logger = logging.getLogger(__name__)

_DEFAULT_DIR = "~/.cache/jax"
_FIRST_SAFE_ON_CPU = (0, 6)
"""Older releases of JAX (tried: 0.5.3) crash when they read a CPU program from the cache."""


def enable(directory: str | os.PathLike[str] = _DEFAULT_DIR) -> bool:
    """Keep compiled programs in `directory`, where that is safe.

    Later processes then load them instead of compiling again.

    Returns:
        Whether the cache is safe, can be written and was enabled.
    """
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    is_safe = jax.default_backend() != "cpu" or version >= _FIRST_SAFE_ON_CPU
    if not is_safe:
        return False
    try:
        folder = pathlib.Path(directory).expanduser()
        found = places.problem(folder)
    except RuntimeError:  # a container's user may have no home
        found = "no home directory"
    if found:
        logger.warning(
            "%s: cannot be written (%s), so every start compiles again. Set HOME to keep programs", directory, found
        )
        return False
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return True
