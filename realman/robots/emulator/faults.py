"""What can go wrong between a client and one arm, switched on and off while the emulator runs."""

import dataclasses

EVERYTHING = "*"
"""Stands for every command in `Faults.silent` and `Faults.rejected`."""


@dataclasses.dataclass
class Faults:
    """One arm's faults. Assign fields at any time and from any thread; each tick and request reads them anew."""

    silent: frozenset[str] = frozenset()
    """Commands that are carried out but never answered."""
    ignored: frozenset[str] = frozenset()
    """Commands that are neither carried out nor answered: a controller that hangs."""
    rejected: frozenset[str] = frozenset()
    """Setting commands that are refused: nothing happens, and the answer says false."""
    reply_delay_s: float = 0.0
    """How late every answer comes, s."""
    is_push_silent: bool = False
    """No state push leaves: a broken network path, or a push that someone switched off."""
    is_push_frozen: bool = False
    """The push goes on, but always with the same state: a hung controller."""

    def is_silent(self, command: str) -> bool:
        """Whether a command gets no answer."""
        return not self.silent.isdisjoint((command, EVERYTHING))

    def is_ignored(self, command: str) -> bool:
        """Whether a command is not even carried out."""
        return not self.ignored.isdisjoint((command, EVERYTHING))

    def is_rejected(self, command: str) -> bool:
        """Whether a command is refused."""
        return not self.rejected.isdisjoint((command, EVERYTHING))
