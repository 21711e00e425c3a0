"""Faults of arms, cameras and policy server while the arms move.

Every run is a process that holds the emulated controllers and the policy server (`robot_cell`), and a second one with
the client and the vendor's SDK (`robot_client`). The SDK may crash. That counts as a loss only if the arms did not come
to rest.
"""

import json
from pathlib import Path
import random
from typing import Any

from benchmarks.torture import robot_faults
from benchmarks.torture.attack import Outcome
from benchmarks.torture.processes import run

_TIMEOUT_S = 150.0
_EXECUTIONS = ("sync", "async", "blend")


class Robot:
    """Lets something break while the arms move."""

    name = "robot"
    share = 4.0

    def __init__(self) -> None:
        self._largest: dict[str, dict[str, float]] = {}

    def open(self, folder: Path, seconds: float) -> None:
        """Prepare nothing."""
        del folder, seconds

    def attack(self, rng: random.Random, index: int, folder: Path) -> Outcome:
        """Run the robot once, with one fault."""
        # All faults in turn, with any seed.
        faults = sorted(robot_faults.FAULTS)
        fault = faults[index % len(faults)]
        follow, execution = rng.choice(("low", "high")), rng.choice(_EXECUTIONS)
        result = folder / "result.json"
        flags: list[Any] = ["--fault", fault, "--follow", follow, "--execution", execution, "--folder", folder]
        flags += ["--seed", rng.getrandbits(30)]
        ended = run(["-m", "benchmarks.torture.robot_cell", *flags], folder, _TIMEOUT_S)
        done = f"{follow} follow, {execution}"
        if ended.code != 0 or not result.exists():
            return Outcome(fault, "lost", "not judged", f"{done}. {ended.tail}")
        found = json.loads(result.read_text())
        for name, value in found["figures"].items():
            largest = self._largest.setdefault(follow, {})
            largest[name] = max(largest.get(name, 0.0), value)
        if found["problems"]:
            return Outcome(fault, "lost", "unsafe", f"{done}. {'; '.join(found['problems'])}")
        return Outcome(fault, "survived", found["how"])

    def notes(self) -> list[str]:
        """Return the largest speeds and accelerations."""
        return [
            f"robot, {follow} follow: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
            for follow, figures in sorted(self._largest.items())
        ]

    def close(self) -> None:
        """Do nothing, as each run ends its own processes."""
