"""The range of each number of an observation's vector."""

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ValueRange:
    """Bounds of a vector [n], in the client's order and units."""

    lower: np.ndarray
    upper: np.ndarray
    # Names of the numbers, for messages.
    names: Sequence[str]

    def __post_init__(self) -> None:
        if not self.lower.shape == self.upper.shape == (len(self.names),):
            raise ValueError(f"range: found {self.lower.shape} and {self.upper.shape}, expected ({len(self.names)},)")

    def outside(self, values: np.ndarray) -> str | None:
        """Return which numbers are outside and by how much, or None.

        The first one is named with its bounds, and the others are counted.
        """
        vector = values.reshape(-1)
        beyond = np.flatnonzero((vector < self.lower) | (vector > self.upper))
        if not beyond.size:
            return None
        first = beyond[0]
        others = f" ({beyond.size} numbers are outside)" if beyond.size > 1 else ""
        return (
            f"{self.names[first]} is {vector[first]:.4g}, "
            f"expected {self.lower[first]:.4g} to {self.upper[first]:.4g}{others}"
        )
