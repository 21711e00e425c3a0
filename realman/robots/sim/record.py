"""Record simulated episodes: realman sample --out-dir data/sample --num-episodes 12 --num-heldout 2.

Writes `<out-dir>/train/episode_<n>.hdf5` and `<out-dir>/heldout/episode_<n>.hdf5`, in parallel, and keeps what is there: an
interrupted run goes on where it stopped.
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

from tqdm import tqdm

from realman import spec
from realman.errors import RealmanError
from realman.robots.sim import episode
from realman.robots.sim.render import Renderer
from realman.robots.sim.render import open_renderer
from realman.robots.sim.scene import Scene

logger = logging.getLogger(__name__)

# First number of an episode's seed. Not 0: numpy pads a short seed with zeros, so (s, 0, 0) would be the draw of a plain s.
_SPLIT_SEEDS = {"train": 1, "heldout": 2}


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the recorder."""

    out_dir: Path = Path("data/sample")
    """Where the folders `train` and `heldout` go."""
    num_episodes: int = 12
    """Episodes to train on."""
    num_heldout: int = 2
    """Episodes kept apart for evaluation."""
    seed: int = 0
    """Draws object poses, start poses and timing; episode n of one seed is always the same."""
    fps: float = spec.DEFAULT_FPS
    """Rate of the recording, Hz."""
    workers: int | None = None
    """Processes; default: one for each core, never more than there are episodes."""
    shadows: bool = False
    """Draw shadows: nicer, about four times slower without a graphics card."""
    overwrite: bool = False
    """Record again what is already there."""

    def check(self) -> None:
        """Refuse numbers that make no recording.

        Raises:
            RealmanError: A flag is below its lowest value.
        """
        for name, lowest in {"num_episodes": 1, "num_heldout": 0, "seed": 0, "fps": 1, "workers": 1}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise RealmanError(f"--{name.replace('_', '-')}: is {value}; expected at least {lowest}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode to record."""

    path: Path
    seed: tuple[int, ...]
    fps: float
    shadows: bool
    height_px: int = spec.IMAGE_HEIGHT_PX
    width_px: int = spec.IMAGE_WIDTH_PX


@dataclasses.dataclass(frozen=True)
class Result:
    """What a job made."""

    num_frames: int
    num_failed: int
    backend: str


def plan_jobs(args: Args) -> list[Job]:
    """List all episodes of a run, recorded or not."""
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
    """Scene and renderer of this process; a graphics context is expensive to open."""
    scene = Scene()
    renderer = open_renderer(scene.model, height, width, shadows=shadows)
    atexit.register(renderer.close)
    return scene, renderer


def record_all(jobs: list[Job], workers: int) -> Iterator[Result]:
    """Record in parallel; results come as they are finished, files do not depend on the number of workers.

    Raises:
        RealmanError: An episode could not be recorded; no further one is begun.
    """
    # Spawned, because a graphics context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_prepare_worker) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(record, job) for job in jobs]):
                yield future.result()
        except KeyboardInterrupt:
            logger.info("interrupted: the episodes in work are finished and kept")
            raise
        except concurrent.futures.process.BrokenProcessPool as e:
            raise RealmanError("record: a worker ended unexpectedly, perhaps out of memory; try --workers 1") from e
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare_worker() -> None:
    logging.basicConfig(level=logging.WARNING)
    # Ctrl-C reaches the whole group: the parent stops handing out work, the episodes in work are finished and kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's software rasteriser would otherwise start a thread for each core in each worker.
    os.environ.setdefault("LP_NUM_THREADS", "1")


def main(args: Args) -> None:
    """Record simulated pick-and-place episodes of the two arms, as HDF5 files that `make convert` reads."""
    args.check()
    began = time.monotonic()
    jobs = plan_jobs(args)
    kept = [] if args.overwrite else [job for job in jobs if job.path.exists()]
    kept_frames = sum(episode.count_frames(job.path) for job in kept)
    missing = [job for job in jobs if job not in kept]
    workers = min(args.workers or os.cpu_count() or 1, max(len(missing), 1))
    results = []
    with tqdm(total=len(jobs), initial=len(kept), unit="ep", desc="record") as progress:
        for result in record_all(missing, workers):
            results.append(result)
            progress.update()
    num_frames = kept_frames + sum(result.num_frames for result in results)
    megabytes = sum(job.path.stat().st_size for job in jobs) / 1e6
    logger.info(
        "%d training and %d held-out episodes in %s: %d frames, %.0f s of motion, %.0f MB",
        *(args.num_episodes, args.num_heldout, args.out_dir, num_frames, num_frames / args.fps, megabytes),
    )
    logger.info(
        "recorded %d (drawn by %s), kept %d that were there, drew %d again because the task failed; %.0f s",
        *(len(results), results[0].backend if results else "nothing", len(kept)),
        *(sum(result.num_failed for result in results), time.monotonic() - began),
    )
    sys.stdout.write(f"{args.out_dir}\n")
