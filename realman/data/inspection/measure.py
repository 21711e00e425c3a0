"""Measure all episodes in parallel.

The measures are everything that the checks and the report need, and small enough to keep for all episodes.
"""

from collections.abc import Sequence
import dataclasses
import functools

from tqdm import tqdm

from realman.data.dataset.pool import as_completed
from realman.data.dataset.pool import available_cores
from realman.data.dataset.pool import process_executor
from realman.data.inspection.images import ImageMeasure
from realman.data.inspection.images import measure_images
from realman.data.inspection.inspected_data import InspectedData
from realman.data.inspection.motion import EpisodeMotion
from realman.data.inspection.motion import measure_motion
from realman.errors import RealmanError

# Budgets over all episodes, so that memory and time stay the same for 10 episodes or 10,000.
_ROWS_IN_ALL = 200_000
_MIN_ROWS, _MAX_ROWS = 16, 512
_FRAMES_IN_ALL = 4_000
_MIN_FRAMES, _MAX_FRAMES = 8, 40
_EPISODES_WITH_THUMBNAILS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeMeasure:
    """What was measured in one episode."""

    name: str
    problem: str | None = None
    """Why it cannot be read at all. If set, the rest is empty."""
    refusal: str | None = None
    """Why the converter would refuse it."""
    num_frames: int = 0
    fps: float = 0.0
    has_fps: bool = False
    clock_fps: float | None = None
    """Frames per second by the recorder's clock. None if it has none, and for a dataset."""
    task: str | None = None
    motion: EpisodeMotion | None = None
    images: ImageMeasure | None = None

    @property
    def seconds(self) -> float:
        """Length of the episode."""
        return self.num_frames / self.fps if self.fps else 0.0


@dataclasses.dataclass(frozen=True)
class _Budget:
    """How much of each episode to read."""

    rows: int
    frames: int
    cameras: tuple[str, ...]
    with_thumbnails: frozenset[str]


def measure_all(data: InspectedData, cameras: Sequence[str], workers: int | None) -> list[EpisodeMeasure]:
    """Measure every episode, in parallel.

    The result has the order of `data.names` and does not depend on `workers`.

    Args:
        data: Recordings or dataset.
        cameras: Cameras that are going to be converted.
        workers: Number of processes. None means one per core.
    """
    names = data.names
    # Thumbnails come from the middle of each third, because the first episodes are often trials.
    chosen = {
        names[(2 * i + 1) * len(names) // (2 * _EPISODES_WITH_THUMBNAILS)] for i in range(_EPISODES_WITH_THUMBNAILS)
    }
    budget = _Budget(
        rows=min(_MAX_ROWS, max(_MIN_ROWS, _ROWS_IN_ALL // len(names))),
        frames=min(_MAX_FRAMES, max(_MIN_FRAMES, _FRAMES_IN_ALL // len(names))),
        cameras=tuple(cameras),
        with_thumbnails=frozenset(chosen),
    )
    number = max(1, min(workers or available_cores(), len(names)))
    measures = {}
    with (
        process_executor(number) as executor,
        tqdm(total=len(names), desc="inspect", unit=" episodes", leave=False) as bar,
    ):
        measure = functools.partial(measure_episode, data, budget=budget)
        for name, result in as_completed(executor, measure, names, max_pending=2 * number):
            measures[name] = result
            bar.update()
    return [measures[name] for name in names]


def measure_episode(data: InspectedData, name: str, budget: _Budget) -> EpisodeMeasure:
    """Measure one episode. Damage becomes part of the result."""
    try:
        with data.open(name) as episode:
            motion = measure_motion(
                episode.state,
                episode.action,
                episode.velocity,
                episode.timestamp,
                fps=episode.fps,
                max_rows=budget.rows,
            )
            images = measure_images(episode, max_frames=budget.frames, with_thumbnails=name in budget.with_thumbnails)
            # The converter's own checks, for the cameras that this episode has.
            return EpisodeMeasure(
                name=name,
                refusal=data.converter_problem(name, [c for c in budget.cameras if c in episode.recorded_cameras]),
                num_frames=episode.num_frames,
                fps=episode.fps,
                has_fps=episode.has_fps,
                clock_fps=episode.clock_fps,
                task=episode.task,
                motion=motion,
                images=images,
            )
    except RealmanError as e:
        return EpisodeMeasure(name, problem=str(e))
