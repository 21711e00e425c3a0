"""Read the normalization statistics of a training run."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from realman import spec
from realman.data.inspection.motion import OTHER_ARM
from realman.errors import DatasetError

FILE_NAME = "norm_stats.json"


@dataclasses.dataclass(frozen=True, eq=False)
class StateStats:
    """1 % and 99 % quantiles of the state, right arm first."""

    path: Path
    q01: np.ndarray
    q99: np.ndarray


def read_state_stats(path: Path) -> StateStats:
    """Read the file that `make norm-stats` writes.

    The file has the model's layout, with the left arm first.

    Args:
        path: The file or its folder.

    Raises:
        DatasetError: It is missing or has no quantiles of 14 numbers.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        stats = json.loads(file.read_text(encoding="utf-8"))["norm_stats"]["state"]
        q01, q99 = (np.array(stats[key], np.float64)[: spec.NUM_DIMS][OTHER_ARM] for key in ("q01", "q99"))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
        raise DatasetError(
            f"{file}: found no quantiles of the state ({e!r}). Make the file with 'make norm-stats'"
        ) from e
    return StateStats(file, q01, q99)
