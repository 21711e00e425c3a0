"""Compare training's data path with the official lerobot, and time the loop.

    python benchmarks/bench_train.py                              # or: make bench-train
    python benchmarks/bench_train.py --sections norm-stats loader
    python benchmarks/bench_train.py --frames 40 --official-items 16 --episodes 10     # A quick look, minutes.

norm-stats: times the whole command `compute_norm_stats.py` and the time that the official library would need to read
every item. Only some items are read, and the rest is extrapolated.

loader: compares batches as training gets them (three cameras, resized, collated, on the device, two threads) with
`LeRobotDataset.__getitem__` on the same files (four cameras decoded, in one process and with two workers), and checks
that both return the same items. Ours is timed in the first pass over a dataset, which decodes and keeps the images,
and in later passes.

The other sections are those of `bench_train_loop.py`. Recordings and datasets are made once in --work-dir. Nothing
else is written, except with --out.
"""

from collections.abc import Callable
import dataclasses
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import time

import bench_convert
import numbers_dataset
import numpy as np

from realman import cli
from realman.data.verify import environment

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "third_party/openpi/scripts/compute_norm_stats.py"
CONFIG = "debug_realman"
LOOP_SECTIONS = ("step", "memory", "processes", "kills")
# Name of a dataset, its recordings, flags of its conversion.
DATASETS = {
    "image, JPEG": ("jpeg", True, ()),
    "image, PNG": ("png", False, ()),
    "video, AV1": ("video", False, ("--mode", "video")),
}
# Ways of `our_loader.py`.
WAYS = {
    "keeping": "first pass",
    "kept": "later passes",
    "decoded": "--data.no-keep-images",
    "reduced": "--data.no-keep-images --data.reduced-jpeg",
}

Rows = list[list[str]]


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the benchmark."""

    sections: tuple[str, ...] = ("norm-stats", "loader", *LOOP_SECTIONS)
    """Sections to run."""
    work_dir: Path = Path("data/bench_train")
    """Folder for recordings and datasets."""
    episodes: int = 120
    """Episodes of the dataset for the statistics."""
    episode_frames: int = 300
    """Frames per episode."""
    frames: int = 150
    """Frames of each of the two recordings that the loader reads (four cameras, 640x480)."""
    official_items: int = 100
    """Items that the official library reads."""
    batches: int = 40
    """Batches of 16 that our loader reads."""
    repeats: int = 3
    """Runs of each measurement. Medians are shown."""
    out: Path | None = None
    """Also write the tables to this JSON file."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Two tables of a section: ratios with goals, and their figures."""

    ratios: Rows
    figures: Rows


def main(args: Args) -> int:
    """Run the sections and print their tables."""
    sections: dict[str, Callable[[Args], Result]] = {"norm-stats": norm_stats, "loader": loader}
    if unknown := [name for name in args.sections if name not in (*sections, *LOOP_SECTIONS)]:
        raise SystemExit(f"--sections: found {unknown}, expected some of {[*sections, *LOOP_SECTIONS]}")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    os.environ["HF_LEROBOT_HOME"] = str((args.work_dir / "lerobot").resolve())
    results = [sections[name](args) for name in args.sections if name in sections]
    if results:
        tables = [
            (["ratio", "found", "goal"], [row for result in results for row in result.ratios]),
            (["what", "found", "unit", "slowest / fastest run"], [row for result in results for row in result.figures]),
        ]
        bench_convert.show(tables)
        if args.out is not None:
            args.out.write_text(json.dumps([{"columns": columns, "rows": rows} for columns, rows in tables], indent=2))
    if loop_sections := tuple(name for name in args.sections if name in LOOP_SECTIONS):
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("bench_train_loop.py")), "--sections", *loop_sections],
            check=True,
        )
    return 0


def norm_stats(args: Args) -> Result:
    """Time the command, and the official library on as many frames."""
    root = numbers_dataset.make(args.work_dir / "lerobot/bench/numbers", args.episodes, args.episode_frames)
    seconds = [time_command(args) for _ in range(args.repeats)]
    found = statistics.median(seconds)
    rates = [alone for alone, _, _ in official(args, make_dataset(args, "image, JPEG"))]
    num_frames = args.episodes * args.episode_frames
    walk_s = num_frames / statistics.median(rates)
    figures = [
        [f"norm stats of {args.episodes} x {args.episode_frames} frames, whole process", f"{found:.2f}", "s", spread(seconds)],
        [f"official walk, JPEG, from {args.official_items} items", f"{walk_s:.0f}", "s", spread(rates)],
        ["size of the dataset (tiny images)", f"{bench_convert.folder_bytes(root) / 2**20:.0f}", "MiB", ""],
    ]  # fmt: skip
    goals = [
        ["norm stats, s", f"{found:.2f}", "below 5"],
        ["norm stats / official walk", f"{walk_s / found:.0f}", "at least 100"],
    ]
    return Result(goals, figures)


def time_command(args: Args) -> float:
    """Return how long the command takes, with the start of Python, s."""
    command = [sys.executable, str(SCRIPT), "--config-name", CONFIG, "--repo-id", "bench/numbers"]
    command += ["--assets-base-dir", str(args.work_dir / "assets")]
    started = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def loader(args: Args) -> Result:
    """Compare rates and items on each kind of dataset."""
    ratios, figures = [], []
    for name in DATASETS:
        root = make_dataset(args, name)
        # One run of each in turn, so that a noisy minute spoils one run of each and not all runs of one.
        ours: dict[str, list[float]] = {way: [] for way in WAYS if way != "reduced" or "JPEG" in name}
        theirs = []
        for _ in range(args.repeats):
            for way, rates in ours.items():
                rates.append(our_rate(args, root, way))
            theirs += official(args, root, repeats=1)
        alone, workers, prepared = (list(rates) for rates in zip(*theirs, strict=True))
        middle = statistics.median
        goal = "at least 3" if "video" in name else "at least 10"
        for way, words in (("kept", "later passes"), ("keeping", "first pass")):
            ratios += [
                [f"{name}, {words}: ours / official {what}", f"{middle(ours[way]) / middle(rates):.1f}", wanted]
                for what, rates, wanted in (
                    ("__getitem__", alone, goal),
                    ("with openpi's resize", prepared, ""),
                    ("with 2 workers", workers, ""),
                )
            ]
        rows = [(f"ours, {WAYS[way]}", rates) for way, rates in ours.items()]
        rows += [("official __getitem__", alone), ("official with openpi's resize", prepared)]
        rows += [("official, DataLoader with 2 workers", workers)]
        figures += [[f"{name}: {what}", f"{middle(rates):.1f}", "samples/s", spread(rates)] for what, rates in rows]
        figures.append([f"{name}: largest difference of an item", *differences(args, root), ""])
    return Result(ratios, figures)


def make_dataset(args: Args, name: str) -> Path:
    """Convert recordings unless that is done, and return the dataset's folder."""
    kind, is_jpeg, flags = DATASETS[name]
    recordings = args.work_dir / f"{'jpeg' if is_jpeg else 'raw'}_{args.frames}"
    root = args.work_dir / f"lerobot/bench/{kind}_{args.frames}"
    if not root.exists():
        bench_convert.make_recordings(recordings, 2, args.frames, is_jpeg=is_jpeg)
        command = [
            sys.executable,
            "-m",
            "realman",
            "convert",
            "--raw-dir",
            str(recordings),
            "--root",
            str(root.parents[1]),
        ]
        command += ["--repo-id", f"bench/{root.name}", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return root


def our_rate(args: Args, root: Path, way: str) -> float:
    """Return the samples/s of our loader in one of the `WAYS`.

    It runs in a process of its own.
    """
    code = Path(__file__).with_name("our_loader.py")
    command = [sys.executable, str(code), f"bench/{root.name}", str(args.batches), way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(done.stdout.split()[-1])


def official(args: Args, root: Path, repeats: int | None = None) -> list[tuple[float, float, float]]:
    """Return the samples/s of the official library.

    The three rates are alone, with two workers, and with openpi's resize.
    """
    python = environment.lerobot_python()
    settings = environment.offline_settings((args.work_dir / "cache").resolve())
    script = Path(__file__).with_name("official_reader.py")
    command = [str(python), str(script), str(root.resolve()), str(args.official_items), str(dump_path(args, root))]
    rates = []
    for _ in range(repeats or args.repeats):
        done = subprocess.run(command, check=False, env=settings, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        alone, workers, prepared = map(float, done.stdout.splitlines()[-1].split())
        rates.append((alone, workers, prepared))
    return rates


def dump_path(args: Args, root: Path) -> Path:
    """Return where the official library's items of a dataset are kept."""
    return (args.work_dir / f"items_{root.name}.npz").resolve()


def differences(args: Args, root: Path) -> tuple[str, str]:
    """Return the largest difference between official items and ours.

    They are compared key by key. The second text names the units.
    """
    from openpi.training.lerobot.dataset import LeRobotDataset

    dataset = LeRobotDataset(f"bench/{root.name}", action_horizon=50)
    numbers, levels = 0.0, 0
    with np.load(dump_path(args, root)) as items:
        for n, index in enumerate(items["order"].tolist()):
            ours = dataset[index]
            keys = {key.split("/", 1)[1] for key in items.files if key.startswith(f"{n}/")}
            if keys != ours.keys():
                raise SystemExit(f"{root}: item {index} has keys {sorted(keys ^ ours.keys())} on one side only")
            for key in keys - {"task"}:
                theirs = items[f"{n}/{key}"]
                if key in dataset.meta.camera_keys:
                    found = np.rint(theirs * 255).astype(int) - ours[key]
                    levels = max(levels, int(np.abs(found).max()))
                else:
                    numbers = max(numbers, float(np.abs(theirs.astype(np.float64) - ours[key]).max()))
            if str(items[f"{n}/task"]) != ours["task"]:
                raise SystemExit(f"{root}: item {index} has another task")
    return f"{levels} / {numbers:g}", "gray levels / numbers"


def spread(values: list[float]) -> str:
    """Return how much the runs differ: largest over smallest."""
    return f"{max(values) / min(values):.2f}"


if __name__ == "__main__":
    cli.run(main, Args)
