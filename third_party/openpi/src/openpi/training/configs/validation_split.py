"""Choose the episodes kept out of training.

They show what the model does on recordings that it has not learned from.
"""

from collections.abc import Sequence
import dataclasses
from typing import Annotated

import numpy as np

from openpi.shared import errors
from openpi.shared import ranges


@dataclasses.dataclass(frozen=True)
class ValidationSplit:
    """Episodes kept out of training. There are none by default.

    Whole episodes are kept out, because neighboring frames are nearly the same. Normalization statistics always cover
    all episodes, so another split needs no new ones.
    """

    # Share of the episodes of each dataset, 0..1. It is rounded to whole episodes, at least one unless it is 0.
    fraction: Annotated[float, ranges.Range(0.0, 0.999, "a share, and some episodes must be left to train on")] = 0.0
    # Indices of the episodes, instead of a share. Not for mixtures.
    episodes: tuple[ranges.Index, ...] = ()
    # Seed that chooses the episodes of the share. It is independent of the seed of training.
    seed: ranges.Seed = 0

    def __post_init__(self) -> None:
        ranges.check(self, "data.validation")
        if self.fraction and self.episodes:
            raise errors.ConfigError("validation: fraction and episodes exclude each other. Give one of them")

    @property
    def is_empty(self) -> bool:
        """Return whether nothing is kept out."""
        return not self.fraction and not self.episodes

    def choose(self, episodes: Sequence[int], place: str) -> frozenset[int]:
        """Return the indices of the episodes that are kept out.

        Each episode is chosen by its own index, so that most of a choice stays the same when a dataset grows.

        Args:
            episodes: Indices of all episodes of a dataset.
            place: Name of the dataset in errors.

        Raises:
            ConfigError: Listed episodes do not exist, or no episode would be left to train on.
        """
        if absent := sorted(set(self.episodes) - set(episodes)):
            raise errors.ConfigError(
                f"{place}: no episodes {absent} (validation), found {min(episodes)} to {max(episodes)}. "
                "Correct --data.validation.episodes"
            )
        chosen = frozenset(self.episodes) if self.episodes else self._draw(episodes)
        if len(chosen) >= len(episodes):
            raise errors.ConfigError(
                f"{place}: validation takes {len(chosen)} of {len(episodes)} episodes, none is left to train on. "
                "Record more, or keep out fewer"
            )
        return chosen

    def _draw(self, episodes: Sequence[int]) -> frozenset[int]:
        if not self.fraction:
            return frozenset()
        count = max(round(self.fraction * len(episodes)), 1)
        lots = {episode: np.random.default_rng([self.seed, episode]).random() for episode in episodes}
        return frozenset(sorted(lots, key=lots.__getitem__)[:count])
