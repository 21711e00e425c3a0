"""Faults between a client and one arm, switchable while the emulator runs."""

import dataclasses

EVERYTHING = "*"
"""Stands for every command in the sets of `Faults`."""


@dataclasses.dataclass
class Faults:
    """One arm's faults.

    Assign fields at any time and from any thread. Each tick and request reads them again.
    """

    silent: frozenset[str] = frozenset()
    """Commands that are carried out but never answered."""
    ignored: frozenset[str] = frozenset()
    """Commands that are neither carried out nor answered: a controller that hangs."""
    rejected: frozenset[str] = frozenset()
    """Setting commands that are refused: nothing happens, and the answer is false."""
    reply_delay_s: float = 0.0
    """Delay of every answer, s."""
    is_push_silent: bool = False
    """Whether no state is pushed: a broken network path, or a push that was switched off."""
    is_push_frozen: bool = False
    """Whether the push always repeats the same state: a hung controller."""

    def is_silent(self, command: str) -> bool:
        """Return whether a command gets no answer."""
        return not self.silent.isdisjoint((command, EVERYTHING))

    def is_ignored(self, command: str) -> bool:
        """Return whether a command is not even carried out."""
        return not self.ignored.isdisjoint((command, EVERYTHING))

    def is_rejected(self, command: str) -> bool:
        """Return whether a command is refused."""
        return not self.rejected.isdisjoint((command, EVERYTHING))
