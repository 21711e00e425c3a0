"""Share the time among the kinds, and count outcomes."""

from collections import Counter
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
from pathlib import Path
import random
import shutil
import sys
import time
import traceback

from rich.console import Console
from rich.table import Table

from benchmarks.torture.attack import Kind
from benchmarks.torture.attack import Outcome

_PROGRESS_S = 5.0


@dataclasses.dataclass(eq=False)
class Tally:
    """What has been counted of one kind."""

    kind: Kind
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    next_index: int = 0
    is_open: bool = False

    @property
    def urgency(self) -> float:
        """Time used so far, relative to the kind's share."""
        return self.seconds / self.kind.share


@dataclasses.dataclass(eq=False)
class Runner:
    """Runs attacks until the time is over.

    The seed, the kind's name and the attack's number decide an attack. The time decides only how many there are.
    """

    kinds: Sequence[Kind]
    seed: int
    seconds: float
    folder: Path
    """Work and losses go here. It is deleted at the end unless something was lost."""
    only: int | None = None
    """Do this attack of each kind and nothing else."""
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    was_interrupted: bool = False

    def __post_init__(self) -> None:
        self.tallies = [Tally(kind) for kind in self.kinds]

    @property
    def losses(self) -> int:
        """Number of attacks that were lost."""
        return sum(o.count for tally in self.tallies for o in tally.outcomes if o.verdict == "lost")

    def run(self) -> int:
        """Attack, print the table and return the exit code.

        Returns:
            1 if anything was lost, 130 after Ctrl-C, else 0.
        """
        try:
            self._attack_until_the_end()
        except KeyboardInterrupt:
            self.was_interrupted = True
            self.say("interrupted")
        finally:
            # A second Ctrl-C must not leave a process behind.
            for tally in self.tallies:
                if tally.is_open:
                    with contextlib.suppress(KeyboardInterrupt):
                        tally.kind.close()
            Console(width=150).print(self.table())
            for note in (note for tally in self.tallies if tally.is_open for note in tally.kind.notes()):
                print(note)
            if not self.losses:
                shutil.rmtree(self.folder, ignore_errors=True)
        return 1 if self.losses else 130 if self.was_interrupted else 0

    def _attack_until_the_end(self) -> None:
        end_s = time.monotonic() + self.seconds
        said_s = time.monotonic()
        while True:
            waiting = [t for t in self.tallies if self.only is None or not t.outcomes]
            if not waiting or (time.monotonic() >= end_s and all(t.outcomes for t in self.tallies)):
                return
            # Every kind gets its first attack, even if the time is short.
            tally = min((t for t in waiting if not t.outcomes), default=None, key=lambda t: t.urgency)
            tally = tally or min(waiting, key=lambda t: t.urgency)
            self._attack(tally)
            if time.monotonic() - said_s > _PROGRESS_S:
                said_s = time.monotonic()
                self.say(self._progress(end_s - said_s))

    def _attack(self, tally: Tally) -> None:
        began_s = time.monotonic()
        kind = tally.kind
        index = tally.next_index if self.only is None else self.only
        tally.next_index += 1
        rng = random.Random(f"{self.seed}/{kind.name}/{index}")
        folder = self.folder / kind.name / f"{index:06d}"
        folder.mkdir(parents=True)
        try:
            if not tally.is_open:
                tally.is_open = True
                self.say(f"{kind.name}: preparing")
                base = self.folder / f"{kind.name}.base"
                base.mkdir()
                kind.open(base, self.seconds)
            outcome = kind.attack(rng, index, folder)
        except Exception as e:
            # An attack that cannot be judged is not a survivor.
            (folder / "traceback.txt").write_text(traceback.format_exc())
            outcome = Outcome("attack", "lost", "not judged", f"{type(e).__name__}: {e}")
        tally.outcomes.append(outcome)
        tally.seconds += time.monotonic() - began_s
        if outcome.verdict == "lost":
            again = f'make torture ARGS="--seed {self.seed} --kinds {kind.name} --only {index}"'
            (folder / "loss.txt").write_text(f"{outcome.target}: {outcome.how}: {outcome.detail}\n{again}\n")
            self.say(f"LOST {kind.name}, {outcome.target}: {outcome.how}: {outcome.detail[:600]}")
            self.say(f"     again: {again}   files: {folder}")
        else:
            shutil.rmtree(folder)

    def _progress(self, left_s: float) -> str:
        done = ", ".join(f"{t.kind.name} {sum(o.count for o in t.outcomes)}" for t in self.tallies)
        return f"{max(left_s, 0):.0f} s left, attacks so far: {done}, lost: {self.losses}"

    def table(self) -> Table:
        """Return attacks, survivors and losses by kind and target."""
        table = Table(title=f"Torture, seed {self.seed}", title_justify="left")
        for name in ("kind", "target", "attacks", "survived", "undetectable", "lost", "time s", "how"):
            table.add_column(name, justify="left" if name in ("kind", "target", "how") else "right")
        for tally in self.tallies:
            for number, target in enumerate(sorted({o.target for o in tally.outcomes})):
                ours = [o for o in tally.outcomes if o.target == target]
                counts = Counter[str]()
                how = Counter[str]()
                for outcome in ours:
                    counts[outcome.verdict] += outcome.count
                    how[outcome.how] += outcome.count
                table.add_row(
                    "" if number else tally.kind.name,
                    target,
                    str(counts.total()),
                    *(str(counts[verdict]) for verdict in ("survived", "undetectable", "lost")),
                    "" if number else f"{tally.seconds:.0f}",
                    ", ".join(f"{name} {count}" for name, count in how.most_common()),
                )
            table.add_section()
        # All kinds together.
        total = Counter[str]()
        for outcome in (o for tally in self.tallies for o in tally.outcomes):
            total[outcome.verdict] += outcome.count
        counts_of = (str(total[verdict]) for verdict in ("survived", "undetectable", "lost"))
        table.add_row("all", "", str(total.total()), *counts_of)
        return table
