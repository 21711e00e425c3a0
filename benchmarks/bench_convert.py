"""Time the converter, the official writer and `cp` on the same recordings.

    python benchmarks/bench_convert.py            # or: make bench-convert

Recordings of four 640x480 cameras are made once in --work-dir (about 2 GB). Each figure is the median of --repeats
runs. Ours is the whole command as a user starts it, with the start of Python (but not its first start, which compiles
the sources) and until all bytes are on the disk (fsync). `cp` is also timed until its bytes are there. Both read
recordings from the disk (cold: none are in the system's cache, as with recordings that are larger than the memory) and
from the cache (warm). The ratio is the median of the ratios of successive runs. The official lerobot writes fewer
frames because it is slow, and its import is not counted. --write adds a page to docs/benchmarks.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import datetime as dt
import os
from pathlib import Path
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time

import cv2
import h5py
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from realman import cli
from realman import spec
from realman.data.verify import environment

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_EVERY_S = 0.1
GOALS = {
    "JPEG recordings / official": ("at least", 50.0),
    "JPEG recordings, time / cp, cold": ("at most", 3.0),
    "JPEG recordings, time / cp, warm": ("at most", 3.0),
    "raw to PNG / official": ("at least", 8.0),
    "raw to video / official": ("at least", 3.0),
    "disk / images' bytes": ("at most", 1.05),
    "peak memory, GiB": ("at most", 1.0),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the benchmark."""

    work_dir: Path = Path("data/bench_convert")
    """Folder for recordings and datasets. It should be on the disk to measure."""
    episodes: int = 4
    """Number of JPEG recordings."""
    frames: int = 1000
    """Frames per recording."""
    raw_episodes: int = 2
    """Number of recordings with raw frames."""
    raw_frames: int = 200
    """Frames per recording."""
    official: bool = True
    """Also time the official writer. It is installed if it is missing (a download of about 3 GB)."""
    official_frames: int = 60
    """Frames that the official writer writes."""
    repeats: int = 3
    """Runs of each measurement."""
    workers: int = 2
    """Number of processes of our converter."""
    write: bool = False
    """Also write docs/benchmarks/convert_<cpu>_<yyyymm>.md."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One measured command."""

    seconds: float
    peak_bytes: int = 0
    """Largest proportional set size (PSS) of the command and all its processes together."""


def main(args: Args) -> int:
    """Time our converter, the official writer and cp, and print the table."""
    args.work_dir.mkdir(parents=True, exist_ok=True)
    jpeg, raw = args.work_dir / "jpeg", args.work_dir / "raw"
    make_recordings(jpeg, args.episodes, args.frames, is_jpeg=True)
    make_recordings(raw, args.raw_episodes, args.raw_frames, is_jpeg=False)
    scratch = args.work_dir / "scratch"
    measures: dict[str, Callable[[], Run]] = {
        "cp, cold": lambda: copy(jpeg, scratch, is_cold=True),
        "ours, JPEG, cold": lambda: convert(jpeg, scratch, args.workers, is_cold=True),
        "cp, warm": lambda: copy(jpeg, scratch),
        "ours, JPEG, warm": lambda: convert(jpeg, scratch, args.workers),
        "ours, raw to PNG": lambda: convert(raw, scratch, args.workers),
        "ours, raw to video": lambda: convert(raw, scratch, args.workers, "--mode", "video"),
    }
    if args.official:
        python = environment.lerobot_python()
        measures |= {
            "official, JPEG": lambda: official(python, jpeg, scratch, "image", args.official_frames),
            "official, raw to PNG": lambda: official(python, raw, scratch, "image", args.official_frames),
            "official, raw to video": lambda: official(python, raw, scratch, "video", args.official_frames),
        }
    convert(raw, scratch, args.workers, "--dry-run")  # The first start of Python compiles the sources.
    runs = {name: [] for name in measures}
    # All of them once, then all again, so that a noisy minute spoils one run of each and not all runs of one.
    for i in range(args.repeats):
        for name, measure in measures.items():
            runs[name].append(measure())
            sys.stderr.write(f"run {i + 1}/{args.repeats}: {name} {runs[name][-1].seconds:.2f} s\n")
    convert(jpeg, scratch, args.workers)
    disk = folder_bytes(scratch / "data") / image_bytes(jpeg)
    shutil.rmtree(scratch)
    report(args, runs, disk)
    return 0


def make_recordings(folder: Path, episodes: int, num_frames: int, *, is_jpeg: bool) -> None:
    """Write recordings unless they are already there.

    They show moving waves with sensor noise, 86 kB per frame as JPEG.
    """
    names = [folder / f"episode_{i}_of_{episodes}_{num_frames}.hdf5" for i in range(episodes)]
    if all(path.exists() for path in names):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pool = [noisy_image(i) for i in range(24)]
    stored = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for p in pool] if is_jpeg else pool
    width = max(map(len, stored))
    motion = 0.5 + 0.4 * np.sin(np.arange(num_frames)[:, None] / 50 + 0.3 * np.arange(spec.NUM_DIMS))
    for path in names:
        part = path.with_suffix(".part")
        with h5py.File(part, "w") as file:
            file.attrs["fps"], file.attrs["language_instruction"] = 50, "fold the towel"
            for name in ("observations/qpos", "observations/qvel", "observations/effort", "action"):
                file[name] = motion
            for i, camera in enumerate(spec.CAMERAS):
                shape = (num_frames, width) if is_jpeg else (num_frames, 480, 640, 3)
                data = file.create_dataset(f"observations/images/{camera}", shape, np.uint8)
                for t in range(num_frames):
                    frame = stored[(t + 6 * i) % len(stored)]
                    data[t, : len(frame)] = frame
        part.rename(path)


def noisy_image(seed: int) -> np.ndarray:
    """Return a 640x480 image with the noise of a camera."""
    y, x = np.mgrid[:480, :640].astype(np.float32)
    waves = [127 + 100 * np.sin(0.02 * y * (c + 1) + 0.015 * x + seed) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 3, (480, 640, 3))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def copy(source: Path, target: Path, *, is_cold: bool = False) -> Run:
    """Time cp until all bytes are on the disk."""
    shutil.rmtree(target, ignore_errors=True)
    settle(source, is_cold=is_cold)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)
    return Run(time.perf_counter() - started)


def convert(source: Path, target: Path, workers: int, *flags: str, is_cold: bool = False) -> Run:
    """Time our command. The dataset is left at `target`."""
    shutil.rmtree(target, ignore_errors=True)
    settle(source, is_cold=is_cold)
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "realman", "convert", "--raw-dir", str(source), "--root", str(target.parent)]
    command += ["--repo-id", target.name, "--workers", str(workers), *flags]
    started = time.perf_counter()
    process = psutil.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with peak_memory(process) as peak:
        code = process.wait()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return Run(time.perf_counter() - started, peak[0])


def official(python: Path, source: Path, target: Path, mode: str, num_frames: int) -> Run:
    """Time the official library on a part of the first recording."""
    shutil.rmtree(target, ignore_errors=True)
    settle(source)
    recording = sorted(source.iterdir())[0]
    script = Path(__file__).with_name("official_writer.py")
    command = [str(python), str(script), str(recording), str(target), mode, str(num_frames)]
    settings = environment.offline_settings(target.with_name("cache"))
    done = subprocess.run(
        command, check=True, env=settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return Run(float(done.stdout.split()[-1]))


def settle(source: Path, *, is_cold: bool = False) -> None:
    """Prepare the disk and the system's cache for a run.

    Earlier writes end first, so that a run pays only for its own. The recordings are then in the cache, or not if
    `is_cold`.
    """
    os.sync()
    for path in source.iterdir():
        with path.open("rb") as file:
            if is_cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while not is_cold and file.read(2**24):
                pass


@contextlib.contextmanager
def peak_memory(process: psutil.Popen) -> Iterator[list[int]]:
    """Sample the memory of a process and its children.

    The peak is in the list when the block has ended.
    """
    peak, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_EVERY_S):
            with contextlib.suppress(psutil.Error):
                family = [process, *process.children(recursive=True)]
                peak[0] = max(peak[0], sum(pss(member) for member in family))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def pss(process: psutil.Process) -> int:
    """Return the memory of a process, or 0 if it has ended.

    Shared pages are divided among the processes that share them.
    """
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def image_bytes(folder: Path) -> int:
    """Return the size of all JPEGs in a folder's recordings, without padding."""
    total = 0
    for path in folder.iterdir():
        with h5py.File(path) as file:
            for data in file["observations/images"].values():
                for start in range(0, len(data), 100):
                    total += sum(len(bytes(row).rstrip(b"\0")) for row in data[start : start + 100])
    return total


def report(args: Args, runs: dict[str, list[Run]], disk: float) -> None:
    """Print ratios and figures, and write a page if asked to."""
    seconds = {name: statistics.median(run.seconds for run in found) for name, found in runs.items()}
    rate = {name: num_frames(name, args) / seconds[name] for name in runs}
    ratios = {}
    if args.official:
        ratios = {
            "JPEG recordings / official": rate["ours, JPEG, cold"] / rate["official, JPEG"],
            "raw to PNG / official": rate["ours, raw to PNG"] / rate["official, raw to PNG"],
            "raw to video / official": rate["ours, raw to video"] / rate["official, raw to video"],
        }
    for cache in ("cold", "warm"):
        pairs = zip(runs[f"ours, JPEG, {cache}"], runs[f"cp, {cache}"], strict=True)
        times_cp = statistics.median(ours.seconds / cp.seconds for ours, cp in pairs)
        ratios[f"JPEG recordings, time / cp, {cache}"] = times_cp
    ratios["disk / images' bytes"] = disk
    ratios["peak memory, GiB"] = max(run.peak_bytes for found in runs.values() for run in found) / 2**30
    ratio_rows = [[name, f"{value:.2f}", " ".join(map(str, GOALS[name]))] for name, value in ratios.items()]
    rows = [
        [name, f"{rate[name]:.1f}", f"{seconds[name]:.2f}", memory(found), spread(found)]
        for name, found in runs.items()
    ]
    tables = [
        (["ratio", "found", "goal"], ratio_rows),
        (["writer", "time steps/s", "s", "peak PSS MiB", "slowest / fastest run"], rows),
    ]
    show(tables)
    if args.write:
        path = ROOT / "docs" / "benchmarks" / f"convert_{cpu_name(short=True)}_{dt.datetime.now(dt.UTC):%Y%m}.md"
        path.write_text(page(args, tables))
        sys.stdout.write(f"{path}\n")


def num_frames(name: str, args: Args) -> int:
    """Return how many time steps a run of this name writes."""
    if name.startswith("official"):
        return args.official_frames
    return args.raw_episodes * args.raw_frames if "raw" in name else args.episodes * args.frames


def memory(found: list[Run]) -> str:
    """Return the peak memory of all runs, if it was measured."""
    peak = max(run.peak_bytes for run in found)
    return f"{peak / 2**20:.0f}" if peak else ""


def spread(found: list[Run]) -> str:
    """Return how much the runs differ: slowest over fastest."""
    return f"{max(run.seconds for run in found) / min(run.seconds for run in found):.2f}"


def show(tables: list[tuple[list[str], list[list[str]]]]) -> None:
    """Print tables to stdout."""
    for headings, rows in tables:
        table = Table()
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        Console(width=120, highlight=False).print(table)


def page(args: Args, tables: list[tuple[list[str], list[list[str]]]]) -> str:
    """Return the tables as a page of documentation."""
    text = [
        "# Conversion\n",
        f"{cpu_name()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}, "
        f"medians of {args.repeats} runs. Four 640x480 cameras at 50 fps. JPEG: {args.episodes} x {args.frames} frames, "
        f"raw: {args.raw_episodes} x {args.raw_frames}, official writer (lerobot 0.3.3): {args.official_frames}. "
        f"Ours with {args.workers} workers, the whole command, all bytes on the disk.\n",
    ]
    for headings, rows in tables:
        text += ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)] + [""]
    text.append("Measured by `make bench-convert ARGS=--write` (`benchmarks/bench_convert.py`).")
    return "\n".join(text) + "\n"


def cpu_name(*, short: bool = False) -> str:
    """Return the name of the processor, if `short` for a file name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")[:40] if short else name


if __name__ == "__main__":
    cli.run(main, Args)
