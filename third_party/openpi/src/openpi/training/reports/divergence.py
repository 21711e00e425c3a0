"""Notice that a run diverges, and keep its batch.

Look at a kept batch with: python -m openpi.training.reports.divergence <run>/diverged_step_<n>.npz
"""

import collections
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from openpi.shared import cli
from openpi.shared import errors
from openpi.training.host import distributed

# Number of steps over which the loss is averaged before it is compared, because one odd batch does not mean divergence.
_WINDOW = 20
# Number of steps before the first comparison, because the first steps of a run say little.
_FEWEST = 5


class DivergedError(errors.UserError, ArithmeticError):
    """Raised when a figure is not finite or the loss grows."""

    def __init__(self, step: int, reason: str, batch: Any = None, place: str = "") -> None:
        """Compose the message.

        Args:
            step: The step that diverged.
            reason: What is wrong with its scalars.
            batch: The batch of the step.
            place: Sentences about the stored batch, for the message.
        """
        super().__init__(
            f"step {step}: {reason}. Nothing was saved after it. {place}Look for extreme values in the normalization "
            "statistics (make norm-stats), lower --lr-schedule.peak-lr, and continue with --resume"
        )
        self.step = step
        self.reason = reason
        self.batch = batch


class LossWatch:
    """Compares the mean loss of the last steps with the lowest mean."""

    def __init__(self, max_growth: float | None) -> None:
        """Start without any steps.

        Args:
            max_growth: Largest allowed ratio. With None, only NaN and infinity are problems.
        """
        self._max_growth = max_growth
        self._recent: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._lowest = math.inf

    def find_problem(self, values: dict[str, float]) -> str | None:
        """Add the scalars of a step and return their problem, if any."""
        broken = [f"{key} {value}" for key, value in values.items() if not math.isfinite(value)]
        if broken:
            return ", ".join(broken)
        self._recent.append(values["loss"])
        if len(self._recent) < _FEWEST:
            return None
        mean = float(np.mean(self._recent))
        if self._max_growth is not None and mean > self._max_growth * self._lowest:
            return (
                f"loss {values['loss']:.4g}: the mean of the last {len(self._recent)} steps, {mean:.4g}, is more than "
                f"{self._max_growth:g} times the lowest one, {self._lowest:.4g} (--max-loss-growth)"
            )
        self._lowest = min(self._lowest, mean)
        return None


def save_batch(directory: pathlib.Path, step: int, batch: Any) -> tuple[pathlib.Path, str]:
    """Write this process's rows of a batch into the run's folder.

    Returns:
        The path of the file, and a phrase with the largest values of the batch.
    """
    observation, actions = batch
    leaves = jax.tree_util.tree_leaves_with_path({**observation.to_dict(), "actions": actions})
    arrays = {
        "/".join(str(getattr(key, "key", key)) for key in path): distributed.local_rows(leaf) for path, leaf in leaves
    }
    suffix = f"_process_{jax.process_index()}" if distributed.is_several() else ""
    path = directory / f"diverged_step_{step}{suffix}.npz"
    np.savez_compressed(path, **arrays)
    return path, "; ".join(_extreme(name, arrays[name]) for name in ("state", "actions"))


def _extreme(name: str, array: np.ndarray) -> str:
    size = np.abs(np.where(np.isfinite(array), array, np.inf))
    index = np.unravel_index(int(np.argmax(size)), size.shape)
    return f"largest of {name} is {array[index]:.4g} at {[int(i) for i in index]}"


def main(path: pathlib.Path) -> int:
    """Print a stored batch.

    For each array, print the shape, the smallest, mean and largest value, and how many values are not finite.

    Raises:
        MissingFileError: There is no such file.
    """
    if not path.is_file():
        raise errors.MissingFileError(f"{path}: no such file. The error message of the run names the path")
    with np.load(path) as arrays:
        width = max(map(len, arrays))
        for name in sorted(arrays):
            array = arrays[name]
            numbers = array[np.isfinite(array)].astype(np.float64)
            figures = [f"{f(numbers):10.4g}" for f in (np.min, np.mean, np.max)] if numbers.size else ["-"] * 3
            line = f"{name:{width}}  {array.shape!s:20} {' '.join(figures)}  {array.size - numbers.size} not finite"
            print(line)  # noqa: T201 - the result
            if name in ("state", "actions"):
                print(f"{'':{width}}  {_extreme(name, array)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    cli.run(main, lambda: pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "-"))
