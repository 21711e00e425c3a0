"""The persistent cache of compiled programs."""

import os
import pathlib

import jax

_DEFAULT_DIR = "~/.cache/jax"
_FIRST_SAFE_ON_CPU = (0, 6)
"""Older releases of JAX (tried: 0.5.3) crash the process when they read a program of the CPU from the cache."""


def enable(directory: str | os.PathLike[str] = _DEFAULT_DIR) -> bool:
    """Keep compiled programs in `directory` across processes, where that is safe; tell whether it is."""
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    is_safe = jax.default_backend() != "cpu" or version >= _FIRST_SAFE_ON_CPU
    if is_safe:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(directory).expanduser()))
    return is_safe
