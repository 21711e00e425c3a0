"""Compute the normalization statistics of a config's dataset.

They are written where the config's training reads them.

Run: python third_party/openpi/scripts/compute_norm_stats.py --config-name pi0_realman
"""

import dataclasses
import inspect
import logging
from typing import Annotated

import rich.console
import tyro

from openpi.shared import cli
from openpi.shared import ranges
from openpi.training import config as _config
from openpi.training.configs.train_config import TrainConfig
from openpi.training.stats import norm_stats
from openpi.training.stats import norm_stats_report

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Args:
    """Compute the normalization statistics of a config's dataset.

    You may add the flags of train.py that decide the data: --data.*, --model.action-horizon, --assets-base-dir. Give the same
    flags to both scripts.
    """

    # Name of a registered training config.
    config_name: str
    # Use at most this many frames, drawn at random. None takes all frames.
    max_frames: Annotated[int, ranges.Range(1, 1_000_000_000_000, "at least one")] | None = None
    # Dataset to read instead of the config's own. For a mixture: the name of its statistics.
    repo_id: str | None = None
    # Smallest q99-q01 of a dimension, in its own unit (rad, grippers 0..1). Keeps dimensions that hardly move from exploding.
    min_range: Annotated[float, ranges.Range(0.0, 1e6, "a width, in the dimension's own unit")] = 0.0
    # Flags of train.py.
    flags: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()

    def __post_init__(self) -> None:
        ranges.check_flags(self)


def parse() -> Args:
    """Read the command line, and keep unknown flags for the config."""
    args, flags = tyro.cli(Args, description=inspect.getdoc(Args), return_unknown_args=True)
    return dataclasses.replace(args, flags=tuple(flags))


def main(
    config_name: str,
    max_frames: int | None = None,
    repo_id: str | None = None,
    min_range: float = 0.0,
    flags: tuple[str, ...] = (),
) -> None:
    """Compute and write the statistics, and print the path of their file.

    `Args` describes the arguments.
    """
    config = _config.with_flags(_config.get_config(config_name), flags)
    if repo_id is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, repo_id=repo_id))
    report = norm_stats.compute_norm_stats(config, max_frames=max_frames, min_range=min_range)
    console = rich.console.Console(stderr=True, width=None if rich.get_console().is_terminal else 120)
    for key in report.stats:
        console.print(norm_stats_report.table(report, key))
    for line in norm_stats_report.advice(report):
        logger.warning("%s", line)
    logger.info(
        "norm stats of %d frames, %d actions ahead, in %.1f s", report.num_frames, _horizon(config), report.seconds
    )
    print(report.path)  # noqa: T201 - the result


def _horizon(config: TrainConfig) -> int:
    return config.model.action_horizon


if __name__ == "__main__":
    cli.run(lambda args: main(**dataclasses.asdict(args)), parse)
