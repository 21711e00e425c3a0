"""Report episodes that are too long for the timestamps of the format."""

from collections.abc import Sequence
import logging

import numpy as np

from realman.data.dataset.build import EpisodeJob

logger = logging.getLogger(__name__)

_LEROBOT_TOLERANCE_S = 1e-4
"""LeRobot's default for the difference between a step of the timestamps and 1 / fps."""


def rounding_s(num_frames: int, fps: float) -> float:
    """Return the largest error of a step between timestamps, s.

    The format stores them as float32, whose spacing is 0.12 ms from 1024 s on, and doubles with the time.
    """
    times = (np.arange(num_frames) / fps).astype(np.float32)
    return float(np.abs(np.diff(times) - 1 / fps).max(initial=0.0))


def report(jobs: Sequence[EpisodeJob], fps: float) -> None:
    """Report an episode that LeRobot's own reader refuses by default.

    Training in this project takes them, because its tolerance follows the rounding.
    """
    # A shard of few recordings has no episode.
    if not jobs:
        return
    longest = max(jobs, key=lambda job: job.num_frames)
    error = rounding_s(longest.num_frames, fps)
    if error > _LEROBOT_TOLERANCE_S:
        logger.warning(
            "%s: %.0f s is long for float32 timestamps, which are rounded by up to %.2f ms. Training here reads it. "
            "Give lerobot tolerance_s=%.0e, or record shorter episodes",
            longest.source,
            longest.num_frames / fps,
            1000 * error,
            2 * error,
        )
