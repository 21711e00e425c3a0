"""Which episodes are kept out of training, to see what the model does on recordings that it has not learnt from."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from openpi.shared import errors


@dataclasses.dataclass(frozen=True)
class ValidationSplit:
    """Episodes kept out of training; none by default. Whole episodes: neighbouring frames are nearly the same.

    Normalisation statistics are of all episodes whatever the split, so that another split needs no new ones.
    """

    # Share of the episodes, 0..1: of each dataset of a mixture; rounded, at least one episode where not 0.
    fraction: float = 0.0
    # Indices of the episodes, instead of a share. Not for mixtures.
    episodes: tuple[int, ...] = ()
    # Chooses the episodes of the share; independent of the seed of training.
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise errors.ConfigError(f"validation: fraction is {self.fraction}, expected 0 up to (not with) 1")
        if self.fraction and self.episodes:
            raise errors.ConfigError("validation: fraction and episodes exclude each other; give one of them")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept out."""
        return not self.fraction and not self.episodes

    def choose(self, episodes: Sequence[int], place: str) -> frozenset[int]:
        """Return the indices of the episodes that are kept out.

        Each episode is judged by its own index, so that most of a choice stays when a dataset grows.

        Args:
            episodes: Indices of all episodes of a dataset.
            place: Names the dataset in errors.

        Raises:
            ConfigError: Listed episodes are not there, or none would be left to train on.
        """
        if absent := sorted(set(self.episodes) - set(episodes)):
            raise errors.ConfigError(
                f"{place}: has no episodes {absent} (validation), found {min(episodes)} to {max(episodes)}; "
                "correct --data.validation.episodes"
            )
        chosen = frozenset(self.episodes) if self.episodes else self._draw(episodes)
        if len(chosen) >= len(episodes):
            raise errors.ConfigError(
                f"{place}: validation takes {len(chosen)} of {len(episodes)} episodes, none is left to train on; "
                "record more, or keep out fewer"
            )
        return chosen

    def _draw(self, episodes: Sequence[int]) -> frozenset[int]:
        if not self.fraction:
            return frozenset()
        count = max(round(self.fraction * len(episodes)), 1)
        lots = {episode: np.random.default_rng([self.seed, episode]).random() for episode in episodes}
        return frozenset(sorted(lots, key=lots.__getitem__)[:count])
