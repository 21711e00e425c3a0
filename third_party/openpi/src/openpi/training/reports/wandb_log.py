"""Report to Weights & Biases.

A training run never fails because of it.
"""

from collections.abc import Callable, Mapping
import dataclasses
import logging
import pathlib
from typing import Any

from openpi.training.configs.train_config import TrainConfig

logger = logging.getLogger(__name__)

# File with the id under which a resumed run continues.
ID_NAME = "wandb_id.txt"


class WandbLog:
    """A run on wandb, or nothing if it is disabled or fails."""

    def __init__(self, config: TrainConfig, directory: pathlib.Path, *, resuming: bool) -> None:
        """Start or continue the run.

        On any error, log a warning and report nothing.
        """
        self._run: Any = None
        if not config.wandb_enabled:
            return
        try:
            self._run = _start(config, directory / ID_NAME, resuming=resuming)
        except ImportError:
            logger.warning("wandb: not installed, so the log is in the run's folder only")
        except Exception as e:  # a reporting service must not end a training run
            logger.warning("wandb: not available (%s), so the log is in the run's folder only", e)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Report the metrics of a step."""
        self._try(lambda run: run.log(dict(metrics), step=step))

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Report an image file."""

        def send(run: Any) -> None:
            import wandb  # an optional package

            run.log({name: wandb.Image(str(path))}, step=step)

        self._try(send)

    def finish(self) -> None:
        """Send what is pending and end the run."""
        self._try(lambda run: run.finish())

    def _try(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as e:  # a reporting service must not end a training run
            logger.warning("wandb: failed (%s) and gets no more reports. The run's folder has everything", e)
            self._run = None


def _start(config: TrainConfig, id_path: pathlib.Path, *, resuming: bool) -> Any:
    import wandb  # an optional package

    if resuming and id_path.exists():
        return wandb.init(id=id_path.read_text().strip(), resume="must", project=config.project_name)
    run = wandb.init(name=config.exp_name, config=dataclasses.asdict(config), project=config.project_name)
    id_path.write_text(run.id)
    return run
