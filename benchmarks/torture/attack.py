"""What an attack is, and what can come of it."""

import dataclasses
from pathlib import Path
import random
from typing import Literal, Protocol

Verdict = Literal["survived", "undetectable", "lost"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one attack."""

    target: str
    """What was attacked, such as 'convert' or 'recording'."""
    verdict: Verdict
    """'survived' means the right value or a refusal in one line. 'undetectable' means that the file was damaged into
    another valid one, and that its format has no checksum that could show it."""
    how: str
    """What happened, in a word or two. The table counts equal ones."""
    detail: str = ""
    """What was done and what came of it. Shown for losses."""
    count: int = 1
    """Number of attacks that this stands for, such as the messages of a batch."""


class Kind(Protocol):
    """One kind of attacks.

    All calls come from one thread. `open` is called before the first attack and `close` after the last, in any case.
    """

    name: str
    share: float
    """Share of the time that it gets, relative to the other kinds."""

    def open(self, folder: Path, seconds: float) -> None:
        """Prepare what is attacked.

        Args:
            folder: An empty folder.
            seconds: Length of the whole run, s.
        """
        ...

    def attack(self, rng: random.Random, index: int, folder: Path) -> Outcome:
        """Do one attack, which `rng` and `index` decide.

        Args:
            rng: The only source of chance.
            index: Number of the attack, from 0.
            folder: An empty folder for its files. It is kept after a loss.
        """
        ...

    def notes(self) -> list[str]:
        """Return figures that were measured on the way, one per line."""
        ...

    def close(self) -> None:
        """End every process that it started."""
        ...
