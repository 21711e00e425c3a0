"""Check the numbers of configs and flags against their ranges.

The ranges stand at the fields (`Annotated[float, Range(low, high, why)]`). `openpi_client.ranges` reads them, so that a
robot's settings are checked in the same way.
"""

from typing import Any

from openpi.shared.errors import OutOfRangeError
from openpi_client.ranges import Count
from openpi_client.ranges import Index
from openpi_client.ranges import ListeningPort
from openpi_client.ranges import Range
from openpi_client.ranges import Seed
from openpi_client.ranges import flag_problems
from openpi_client.ranges import problems

__all__ = ["Count", "Index", "ListeningPort", "Range", "Seed", "check", "check_flags"]


def check(settings: Any, place: str) -> None:
    """Refuse settings with a number out of its range.

    Args:
        settings: An instance of a dataclass.
        place: What the settings are, for messages, such as "lr_schedule".

    Raises:
        OutOfRangeError: The message names every such field.
    """
    if found := problems(settings):
        raise OutOfRangeError(". ".join(f"{place}.{text}" for text in found))


def check_flags(flags: Any, prefix: str = "") -> None:
    """Refuse flags of a script with a number out of its range.

    Args:
        flags: An instance of a dataclass.
        prefix: What precedes the names of nested flags, such as "policy.".

    Raises:
        OutOfRangeError: The message names every such flag.
    """
    if found := flag_problems(flags, prefix):
        raise OutOfRangeError(". ".join(found))
