"""The persistent cache of compiled programs."""

import os
import pathlib

import jax

_DEFAULT_DIR = "~/.cache/jax"
_FIRST_SAFE_ON_CPU = (0, 6)
"""Older releases of JAX (tried: 0.5.3) crash when they read a CPU program from the cache."""


def enable(directory: str | os.PathLike[str] = _DEFAULT_DIR) -> bool:
    """Keep compiled programs in `directory`, where that is safe.

    Later processes then load them instead of compiling again.

    Returns:
        Whether the cache is safe and was enabled.
    """
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    is_safe = jax.default_backend() != "cpu" or version >= _FIRST_SAFE_ON_CPU
    if is_safe:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(directory).expanduser()))
    return is_safe
