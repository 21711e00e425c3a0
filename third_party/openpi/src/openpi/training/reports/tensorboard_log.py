"""Write TensorBoard files into the run's folder, with tensorboardX."""

from collections.abc import Mapping
import pathlib
from typing import Any

from openpi.shared import errors

FOLDER = "tensorboard"


def check_installed() -> None:
    """Check that tensorboardX is installed.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import tensorboardX  # noqa: F401 - an optional package
    except ImportError as e:
        raise errors.ConfigError(
            "--tensorboard: tensorboardX is not installed. Run 'pip install tensorboardX', or leave the flag out, because "
            "train_log.csv and curves.png are always written"
        ) from e


class TensorBoardLog:
    """A TensorBoard file of scalars by step."""

    def __init__(self, directory: pathlib.Path, first_step: int) -> None:
        """Start a file.

        Values of `first_step` and later in earlier files are hidden, because these steps are done again.
        """
        import tensorboardX  # an optional package

        purge = first_step or None
        self._writer: Any = tensorboardX.SummaryWriter(str(directory / FOLDER), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of a step."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def finish(self) -> None:
        """Write what is pending and close the file."""
        self._writer.close()
