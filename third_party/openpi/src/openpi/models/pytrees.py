"""Frozen dataclasses that JAX sees as pytrees."""

from typing import TypeVar, dataclass_transform

from flax import struct

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree of its fields.

    This is `flax.struct.dataclass` in a form that type checkers understand.
    """
    return struct.dataclass(cls)
