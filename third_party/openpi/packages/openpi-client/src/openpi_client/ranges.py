"""Declare the range of a number at its field, and check it.

    @dataclasses.dataclass(frozen=True)
    class Settings:
        max_age_s: Annotated[float, Range(0.02, 2.0, "a gripper closes in 0.5 s")] = 1.0
        port: Port = 8000

        def __post_init__(self) -> None:
            if found := problems(self):
                raise ValueError(found[0])

A number that is not finite is in no range, so no comparison with it can switch a check off. Robots and servers share this
module. Each side raises the error of its own family.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import numbers
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

_LARGEST_IN_FULL = 1e15
_MAX_DIGITS = 40


@dataclasses.dataclass(frozen=True)
class Range:
    """Smallest and largest value of a number, both allowed, and why."""

    low: float
    high: float
    why: str
    """Reason of the bounds, which the message gives in parentheses."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(
                f"range: found {self.low} to {self.high}, expected finite numbers with the lower one first"
            )

    def __str__(self) -> str:
        return f"{in_words(self.low)} to {in_words(self.high)} ({self.why})"


Port = Annotated[int, Range(1, 65535, "a port of TCP or UDP")]
"""A port to connect to."""

ListeningPort = Annotated[int, Range(0, 65535, "a port of TCP or UDP, and 0 takes a free one")]
"""A port to listen at."""

Count = Annotated[int, Range(1, 1_000_000_000, "at least one, and far more than any run has")]
"""How many of something."""

Index = Annotated[int, Range(0, 1_000_000_000, "counted from 0")]
"""Which one of something."""

Seed = Annotated[int, Range(0, 2**32 - 1, "seeds have 32 bits")]
"""Where random numbers start."""


def problems(settings: Any, kind: type[Range] = Range) -> list[str]:
    """Return a text for each number that is out of its range.

    A text is `field: found VALUE, expected LOW to HIGH (WHY)`. A bool is not a number, an `int` field takes whole numbers
    only, and numbers inside of tuples, lists and mappings are checked one by one. Nested dataclasses check themselves. A
    number without a range must be finite.

    Args:
        settings: An instance of a dataclass.
        kind: Class of the ranges to check. Those of another class are ignored.
    """
    cls: Any = type(settings)
    return [
        problem
        for name, hint in number_hints(cls).items()
        for problem in problems_of(name, getattr(settings, name), hint, kind)
    ]


def flag_problems(flags: Any, prefix: str = "") -> list[str]:
    """Return what `problems` does, with names as flags have them.

    Args:
        flags: An instance of a dataclass.
        prefix: What precedes the names of nested flags, such as "policy.".
    """
    texts = (text.partition(":") for text in problems(flags))
    return [f"--{prefix}{name.replace('_', '-')}:{rest}" for name, _, rest in texts]


@functools.cache
def number_hints(cls: type) -> dict[str, Any]:
    """Return the types of all fields with numbers, with their ranges."""
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: hints[name] for name in names if any(declared(hints[name]))}


def declared(hint: Any, outer: tuple[Range, ...] = ()) -> Iterator[tuple[type, tuple[Range, ...]]]:
    """Yield each number in a type: `int` or `float`, and its ranges.

    Args:
        hint: Type of a field.
        outer: Ranges of what the type is a part of.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint in (int, float):
        yield hint, outer
    elif origin is Annotated:
        yield from declared(parts[0], (*outer, *(part for part in parts[1:] if isinstance(part, Range))))
    elif origin is not Callable:
        for part in parts:
            yield from declared(part, outer)


def problems_of(
    name: str, value: Any, hint: Any, kind: type[Range] = Range, bounds: Range | None = None
) -> Iterator[str]:
    """Yield a text for each number that is out of range.

    Args:
        name: Name of the field, for the texts.
        value: Its value.
        hint: Its type, with ranges.
        kind: Class of the ranges to check.
        bounds: Range of what the value is a part of.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        own = next((part for part in parts[1:] if type(part) is kind), bounds)
        yield from problems_of(name, value, parts[0], kind, own)
    elif origin in (Union, types.UnionType):
        # A value of another type than the number belongs to another member of the union.
        if isinstance(value, numbers.Number) or not _takes(value, parts):
            for part in parts:
                if any(declared(part)):
                    yield from problems_of(name, value, part, kind, bounds)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from problems_of(f"{name}.{key}", item, parts[-1] if parts else Any, kind, bounds)
    elif isinstance(value, Sequence) and not isinstance(value, str) and parts:
        types_of_items = parts if Ellipsis not in parts and len(parts) == len(value) else parts[:1] * len(value)
        for i, (item, part) in enumerate(zip(value, types_of_items, strict=True)):
            yield from problems_of(f"{name}[{i}]", item, part, kind, bounds)
    elif hint in (int, float):
        yield from _check(name, value, hint, kind, bounds)


def _takes(value: Any, parts: tuple[Any, ...]) -> bool:
    """Return whether a member without numbers has the type of the value."""
    others = [get_origin(part) or part for part in parts if not any(declared(part))]
    return any(isinstance(part, type) and isinstance(value, part) for part in others)


def _check(name: str, value: Any, hint: type, kind: type[Range], bounds: Range | None) -> Iterator[str]:
    if bounds is None and kind is not Range:
        return
    wanted = "a finite number" if bounds is None else str(bounds)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or (hint is int and not isinstance(value, numbers.Integral)):
        yield f"{name}: found {value!r}, expected a {'whole ' if hint is int else ''}number, {wanted}"
    elif not _is_finite(value) or (bounds is not None and not bounds.low <= value <= bounds.high):
        yield f"{name}: found {in_words(value)}, expected {wanted}"


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        # It has hundreds of digits.
        return False


def in_words(number: Any) -> str:
    """Return a number as messages show it."""
    if isinstance(number, int) and abs(number) >= 10**_MAX_DIGITS:
        return "a number of too many digits"
    is_short = isinstance(number, float) and number.is_integer() and abs(number) < _LARGEST_IN_FULL
    return str(int(number)) if is_short else str(number)
