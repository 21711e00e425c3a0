"""Check the numbers of settings and flags against their ranges.

The ranges stand at the fields (`Annotated[float, Range(low, high, why)]`). `openpi_client.ranges` reads them, so that the
server's settings are checked in the same way.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from openpi_client.ranges import Count
from openpi_client.ranges import Index
from openpi_client.ranges import ListeningPort
from openpi_client.ranges import Port
from openpi_client.ranges import Range
from openpi_client.ranges import Seed
from openpi_client.ranges import flag_problems
from openpi_client.ranges import number_hints
from openpi_client.ranges import problems
from openpi_client.ranges import problems_of
from realman.errors import FlagError
from realman.errors import SiteError

__all__ = [
    "ConnectTimeout",
    "Count",
    "Index",
    "ListeningPort",
    "OnRealArms",
    "Port",
    "Range",
    "ReplyTimeout",
    "Seed",
    "Workers",
    "check_flags",
    "check_on_real_arms",
    "check_settings",
    "check_table",
    "problems",
]


Workers = Annotated[int, Range(1, 1024, "processes of one machine")]
"""How many processes share the work."""

ConnectTimeout = Annotated[float, Range(0.05, 3600.0, "from one round trip to an hour of loading a model")]
"""How long to wait for a server to come up, s."""

ReplyTimeout = Annotated[float, Range(0.05, 600.0, "from one round trip to a model on a slow computer")]
"""How long to wait for a prediction, s."""


class OnRealArms(Range):
    """A narrower range, for a site whose arms are real.

    Simulated and emulated arms harm nobody, and the computer that simulates them may be slow.
    """


def check_settings(settings: Any) -> None:
    """Refuse settings with a number out of its range.

    Raises:
        SiteError: The message names every such field. The reader of the file adds the place.
    """
    if found := problems(settings):
        raise SiteError(". ".join(found))


def check_table(cls: type, table: Mapping[str, Any]) -> None:
    """Refuse numbers of a table that a dataclass does not allow.

    Raises:
        SiteError: The message names every such key.
    """
    hints = number_hints(cls)
    found = [text for key in hints.keys() & table.keys() for text in problems_of(key, table[key], hints[key])]
    if found:
        raise SiteError(". ".join(sorted(found)))


def check_on_real_arms(tables: dict[str, Any]) -> None:
    """Refuse numbers that would leave real arms without a check.

    Args:
        tables: The site's settings by the name of their table.

    Raises:
        SiteError: The message names the table of every such field.
    """
    found = [f"[{name}] {text}" for name, table in tables.items() for text in problems(table, OnRealArms)]
    if found:
        raise SiteError(". ".join(found))


def check_flags(flags: Any) -> None:
    """Refuse flags of a command with a number out of its range.

    Raises:
        FlagError: The message names every such flag.
    """
    if found := flag_problems(flags):
        raise FlagError(". ".join(found))
