"""TensorBoard files in the run's folder, through the small writer tensorboardX."""

from collections.abc import Mapping
import pathlib
from typing import Any

from openpi.shared import errors

FOLDER = "tensorboard"


def check_installed() -> None:
    """Look for the writer before anything else is done.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import tensorboardX  # noqa: F401 - an optional package
    except ImportError as e:
        raise errors.ConfigError(
            "--tensorboard: tensorboardX is not installed; 'pip install tensorboardX', or leave the flag out: "
            "train_log.csv and curves.png are always written"
        ) from e


class TensorBoardLog:
    """Scalars by step."""

    def __init__(self, directory: pathlib.Path, first_step: int) -> None:
        """Begin a file; what earlier ones hold of `first_step` and later is hidden, for these steps are done again."""
        import tensorboardX  # an optional package

        purge = first_step or None
        self._writer: Any = tensorboardX.SummaryWriter(str(directory / FOLDER), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write metrics of a step."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def finish(self) -> None:
        """Write what is left."""
        self._writer.close()
