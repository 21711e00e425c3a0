"""Send the reports of a run to all its targets.

The run's own log is always written. TensorBoard files and wandb are optional. Only process 0 writes.
"""

from collections.abc import Callable, Mapping
import functools
import logging
import pathlib
from typing import Any

import psutil

from openpi.models import model as _model
from openpi.training.configs.train_config import TrainConfig
from openpi.training.host import distributed
from openpi.training.reports import run_log
from openpi.training.reports import tensorboard_log
from openpi.training.reports.wandb_log import WandbLog

logger = logging.getLogger(__name__)


def check_installed(config: TrainConfig) -> None:
    """Check that the packages for the config's reports are installed.

    Raises:
        ConfigError: A package is not installed.
    """
    if config.tensorboard:
        tensorboard_log.check_installed()


class RunReports:
    """All reports of one run."""

    def __init__(self, config: TrainConfig, directory: pathlib.Path, first_step: int) -> None:
        """Open all reports.

        A resumed run continues in the same files.
        """
        self._directory = directory
        self._failed: set[str] = set()
        self._is_first = distributed.is_first()
        self._log = run_log.RunLog(directory, first_step, writes=self._is_first)
        self._others: list[Any] = []
        self._wandb = WandbLog(config, directory, resuming=first_step > 0) if self._is_first else None
        if self._wandb is not None:
            self._others.append(self._wandb)
        if config.tensorboard and self._is_first:
            self._others.append(tensorboard_log.TensorBoardLog(directory, first_step))

    def _try(self, what: str, action: Callable[[], Any]) -> None:
        """Do something that a run can do without.

        A failure, such as a full disk, is said once. The next checkpoint is worth more than a report.
        """
        try:
            action()
        except Exception as e:
            if what not in self._failed:
                reason = str(e).splitlines()[0] if str(e) else type(e).__name__
                logger.error("%s: could not be written (%s). Training continues without it", what, reason)
            self._failed.add(what)
        else:
            self._failed.discard(what)

    @property
    def lines(self) -> list[dict[str, float]]:
        """All lines on training, including those from before a resume."""
        return self._log.lines

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report on training.

        The memory of this process, GiB, is added to the metrics.
        """
        memory_gib = psutil.Process().memory_info().rss / 2**30
        metrics = {**metrics, "memory_gib": memory_gib}
        self._try("the log of training", lambda: self._log.write(step, metrics))
        self._write_others(step, metrics)
        if self._is_first:
            logger.info(
                "step %d: loss %.4f, grad_norm %.3f, param_norm %.2f, %.1f samples/s, loader wait %.0f %%, %.1f GiB",
                *(step, metrics["loss"], metrics["grad_norm"], metrics["param_norm"], metrics["samples_per_s"]),
                *(100 * metrics["loader_wait"], memory_gib),
            )

    def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report on a validation."""
        self._try("the log of validation", lambda: self._log.write_validation(step, metrics))
        self._write_others(step, metrics)

    def _write_others(self, step: int, metrics: Mapping[str, float]) -> None:
        for report in self._others:
            self._try(type(report).__name__, functools.partial(report.write, step, metrics))

    def write_views(self, observation: _model.Observation) -> None:
        """Save the images that the model sees of this process's first samples."""
        if not self._is_first:
            return
        local = observation.replace(
            images={name: distributed.local_rows(image) for name, image in observation.images.items()}
        )

        def save() -> None:
            path = run_log.save_camera_views(self._directory, local)
            if self._wandb is not None:
                self._wandb.write_image(0, "camera_views", path)

        self._try(run_log.VIEWS_NAME, save)

    def draw_curves(self) -> None:
        """Draw everything logged so far."""
        self._try(run_log.CURVES_NAME, self._log.draw_curves)

    def finish(self) -> None:
        """Write what is pending and close all reports."""
        for report in self._others:
            self._try(type(report).__name__, report.finish)
