"""Compute the normalisation statistics of a config's dataset and write them where its training reads them.

Run: python third_party/openpi/scripts/compute_norm_stats.py --config-name pi0_realman
"""

import dataclasses
import logging

import numpy as np

from openpi.shared import cli
from openpi.training import config as _config
from openpi.training import norm_stats

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Args:
    """Compute the normalisation statistics of a config's dataset."""

    # Registered training config.
    config_name: str
    # Use only so many frames, drawn at random; by default all.
    max_frames: int | None = None
    # Dataset to read instead of the config's own.
    repo_id: str | None = None


def main(config_name: str, max_frames: int | None = None, repo_id: str | None = None) -> None:
    """Compute, write, and print the path of the file; see `Args` for the arguments."""
    config = _config.get_config(config_name)
    if repo_id is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, repo_id=repo_id))
    report = norm_stats.compute_norm_stats(config, max_frames=max_frames)
    for key, stats in report.stats.items():
        with np.printoptions(precision=4, suppress=True, linewidth=120):
            logger.info("%s mean %s std %s", key, stats.mean, stats.std)
    logger.info("norm stats of %d frames in %.1f s", report.num_frames, report.seconds)
    print(report.path)  # noqa: T201 - the result


if __name__ == "__main__":
    cli.run(lambda args: main(**dataclasses.asdict(args)), Args)
