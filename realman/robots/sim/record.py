"""`realman sample`: record simulated episodes.

Example: `realman sample --out-dir data/sample --num-episodes 12 --num-heldout 2`

Writes `<out-dir>/train/episode_<n>.hdf5` and `<out-dir>/heldout/episode_<n>.hdf5` in parallel. Existing episodes are
kept, so an interrupted run resumes where it stopped.
"""

import atexit
from collections.abc import Iterator
import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import logging
import multiprocessing
import os
from pathlib import Path
import signal
import sys
import time
from typing import Annotated

from tqdm import tqdm

from realman import cli
from realman import spec
from realman.errors import RealmanError
from realman.ranges import Count
from realman.ranges import Range
from realman.ranges import Seed
from realman.ranges import Workers
from realman.ranges import check_flags
from realman.robots.sim import episode
from realman.robots.sim.render import Renderer
from realman.robots.sim.render import open_renderer
from realman.robots.sim.scene import Scene

logger = logging.getLogger(__name__)

# Second number of an episode's seed. Not 0, because numpy pads short seeds with zeros: (s, 0, 0) would equal a plain s.
_SPLIT_SEEDS = {"train": 1, "heldout": 2}


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the recorder."""

    out_dir: Path = Path("data/sample")
    """Folder for the subfolders `train` and `heldout`."""
    num_episodes: Count = 12
    """Number of episodes to train on."""
    num_heldout: Annotated[int, Range(0, 1_000_000, "0 holds none out")] = 2
    """Number of episodes held out for evaluation."""
    seed: Seed = 0
    """Seed of object poses, start poses and timing. Episode n of a seed is always the same."""
    fps: Annotated[float, Range(1.0, 1000.0, "frames per second of a recording")] = spec.DEFAULT_FPS
    """Rate of the recording, Hz."""
    workers: Workers | None = None
    """Number of processes, at most one per episode. The default is one per core."""
    shadows: bool = False
    """Draw shadows. They look nicer but take about four times as long without a graphics card."""
    overwrite: bool = False
    """Record existing episodes again."""

    def __post_init__(self) -> None:
        check_flags(self)


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode to record."""

    path: Path
    seed: tuple[int, ...]
    fps: float
    shadows: bool
    height_px: int = spec.DEFAULT_IMAGE_HEIGHT_PX
    width_px: int = spec.DEFAULT_IMAGE_WIDTH_PX


@dataclasses.dataclass(frozen=True)
class Result:
    """What a job recorded."""

    num_frames: int
    num_failed: int
    backend: str


def plan_jobs(args: Args) -> list[Job]:
    """Return all episodes of a run, recorded or not."""
    return [
        Job(args.out_dir / split / f"episode_{n}.hdf5", (args.seed, _SPLIT_SEEDS[split], n), args.fps, args.shadows)
        for split, count in (("train", args.num_episodes), ("heldout", args.num_heldout))
        for n in range(count)
    ]


def record(job: Job) -> Result:
    """Simulate, draw and write one episode."""
    scene, renderer = _workshop(job.height_px, job.width_px, job.shadows)
    rollout = episode.simulate(scene, job.seed, job.fps)
    episode.write_episode(job.path, scene, rollout, renderer, job.fps)
    return Result(len(rollout.action), rollout.num_failed, renderer.backend)


@functools.cache
def _workshop(height: int, width: int, shadows: bool) -> tuple[Scene, Renderer]:  # noqa: FBT001
    """Return the scene and renderer of this process.

    They are opened once, because a graphics context is expensive to open.
    """
    scene = Scene()
    renderer = open_renderer(scene.model, height, width, shadows=shadows)
    atexit.register(renderer.close)
    return scene, renderer


def record_all(jobs: list[Job], workers: int) -> Iterator[Result]:
    """Record in parallel and yield each result when it is finished.

    The files do not depend on the number of workers.

    Raises:
        RealmanError: An episode could not be recorded. No further one is started.
    """
    # Spawned, because a graphics context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_prepare_worker) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(record, job) for job in jobs]):
                yield future.result()
        except KeyboardInterrupt:
            logger.info("interrupted: episodes in progress are finished and kept")
            raise
        except concurrent.futures.process.BrokenProcessPool as e:
            raise RealmanError("record: a worker died, perhaps because memory ran out. Try --workers 1") from e
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare_worker() -> None:
    logging.basicConfig(level=logging.WARNING)
    # Ctrl-C reaches the whole process group. Workers ignore it and finish their episode. The parent hands out no more
    # work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Otherwise Mesa's software rasterizer would start one thread per core in each worker.
    os.environ.setdefault("LP_NUM_THREADS", "1")


def main(args: Args) -> None:
    """Record simulated pick-and-place episodes of both arms as HDF5 files."""
    cli.check_place(args.out_dir, "--out-dir")
    began = time.monotonic()
    # Keep the episodes of an earlier run. Counting their frames also shows a damaged file before any work is done.
    jobs = plan_jobs(args)
    kept = [] if args.overwrite else [job for job in jobs if job.path.exists()]
    kept_frames = sum(episode.count_frames(job.path) for job in kept)
    missing = [job for job in jobs if job not in kept]
    workers = min(args.workers or os.cpu_count() or 1, max(len(missing), 1))
    # Record the missing episodes.
    results = []
    with tqdm(total=len(jobs), initial=len(kept), unit="ep", desc="record") as progress:
        for result in record_all(missing, workers):
            results.append(result)
            progress.update()
    # Report totals to stderr. Only the folder goes to stdout, for scripts.
    num_frames = kept_frames + sum(result.num_frames for result in results)
    megabytes = sum(job.path.stat().st_size for job in jobs) / 1e6
    logger.info(
        "%d training and %d held-out episodes in %s: %d frames, %.0f s of motion, %.0f MB",
        *(args.num_episodes, args.num_heldout, args.out_dir, num_frames, num_frames / args.fps, megabytes),
    )
    logger.info(
        "recorded %d (drawn by %s), kept %d, redrew %d because the task failed, took %.0f s",
        *(len(results), results[0].backend if results else "nothing", len(kept)),
        *(sum(result.num_failed for result in results), time.monotonic() - began),
    )
    sys.stdout.write(f"{args.out_dir}\n")
