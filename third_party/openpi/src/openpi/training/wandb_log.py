"""Reports to Weights & Biases where it is installed and reachable; a run never fails because of it."""

from collections.abc import Mapping
import dataclasses
import logging
import pathlib
from typing import Any

from openpi.training.train_config import TrainConfig

logger = logging.getLogger(__name__)

# Holds the id under which a resumed run goes on.
ID_NAME = "wandb_id.txt"


class WandbLog:
    """A run on wandb, or nothing at all."""

    def __init__(self, config: TrainConfig, directory: pathlib.Path, *, resuming: bool) -> None:
        """Begin or continue the run; on any trouble there is a warning and nothing is reported."""
        self._run: Any = None
        if not config.wandb_enabled:
            return
        try:
            self._run = _start(config, directory / ID_NAME, resuming=resuming)
        except ImportError:
            logger.warning(
                "wandb is not installed: logging to the run's folder only (--no-wandb-enabled silences this)"
            )
        except Exception as e:  # a reporting service must not end a training run
            logger.warning("wandb is not available (%s): logging to the run's folder only", e)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Report metrics of a step."""
        if self._run is not None:
            self._run.log(dict(metrics), step=step)

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Report an image file."""
        if self._run is not None:
            import wandb  # an optional package

            self._run.log({name: wandb.Image(str(path))}, step=step)

    def finish(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()


def _start(config: TrainConfig, id_path: pathlib.Path, *, resuming: bool) -> Any:
    import wandb  # an optional package

    if resuming and id_path.exists():
        return wandb.init(id=id_path.read_text().strip(), resume="must", project=config.project_name)
    run = wandb.init(name=config.exp_name, config=dataclasses.asdict(config), project=config.project_name)
    id_path.write_text(run.id)
    return run
