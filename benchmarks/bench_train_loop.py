"""Time the train loop on the CPU, and check memory and kills.

    python benchmarks/bench_train_loop.py                          # debug_realman, about eight minutes on 2 cores.
    python benchmarks/bench_train_loop.py --sections kills --steps 20

Sections: step time and loader wait, memory and its estimate, two processes, three kills. Every run is
`scripts/train.py` as a user starts it, in a folder that is deleted afterwards. It trains on simulated recordings that
are made first, or on the dataset --repo-id. Ratios come first in each table. Nothing is written, except with --out.
"""

from collections.abc import Callable
import dataclasses
import inspect
import json
import os
from pathlib import Path
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import psutil
import tyro

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "third_party/openpi/scripts/train.py"
CONFIG = "debug_realman"
PORT_TRIES = 3


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    # Parts to run: step, memory, processes, kills.
    sections: tuple[str, ...] = ("step", "memory", "processes", "kills")
    # Training steps of each run.
    steps: int = 40
    # Samples per step.
    batch_size: int = 16
    # Simulated episodes to make, unless --repo-id is given.
    episodes: int = 4
    # An existing dataset below $HF_LEROBOT_HOME.
    repo_id: str | None = None
    # Seed that chooses the steps at which a run is killed.
    seed: int = 0
    # Also write the tables to this JSON file.
    out: Path | None = None


@dataclasses.dataclass
class Run:
    """A finished training process."""

    log: list[dict[str, float]]
    stderr: str
    peak_mib: float


class Workplace:
    """A folder with a dataset and its statistics, for training runs."""

    def __init__(self, args: Args, folder: Path) -> None:
        self.args = args
        self.folder = folder
        self.repo_id = args.repo_id or "realman/bench"
        self.env = os.environ | {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "disabled"}
        if args.repo_id is None:
            self.env["HF_LEROBOT_HOME"] = str(folder / "lerobot")
            self._call(
                "-m",
                "realman",
                "sample",
                "--out-dir",
                folder / "sample",
                "--num-episodes",
                args.episodes,
                "--num-heldout",
                0,
            )
            self._call("-m", "realman", "convert", "--raw-dir", folder / "sample/train", "--repo-id", self.repo_id)
        stats = ROOT / "third_party/openpi/scripts/compute_norm_stats.py"
        self._call(stats, "--config-name", CONFIG, "--repo-id", self.repo_id)

    def _call(self, *command: object) -> None:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr[-2000:]}")

    def start(self, name: str, *flags: object, env: dict[str, str] | None = None, cores: set[int] | None = None) -> Any:
        """Start a training process."""
        command = [sys.executable, TRAIN, CONFIG, "--exp-name", name, "--data.repo-id", self.repo_id]
        command += [
            "--num-train-steps",
            self.args.steps,
            "--batch-size",
            self.args.batch_size,
            "--log-interval",
            1,
            *flags,
        ]
        err = (self.folder / f"{name}.{time.monotonic_ns()}.err").open("w+")
        process = subprocess.Popen(
            list(map(str, command)), cwd=self.folder, env=self.env | (env or {}), stdout=subprocess.DEVNULL, stderr=err
        )
        if cores:
            psutil.Process(process.pid).cpu_affinity(sorted(cores))
        return process, err

    def wait(self, name: str, process: Any, err: Any) -> Run:
        """Wait for a training process.

        Its peak of memory is the operating system's own figure.
        """
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        text = read(err)
        if process.returncode:
            raise SystemExit(f"run {name}: exit status {process.returncode}\n{text[-3000:]}")
        return Run(self.log(name), text, usage.ru_maxrss / 1024)

    def train(self, name: str, *flags: object, **options: Any) -> Run:
        """Start a run and wait for its end."""
        return self.wait(name, *self.start(name, *flags, **options))

    def log(self, name: str) -> list[dict[str, float]]:
        """Read a run's log, also while it is being written."""
        path = self.folder / "checkpoints" / CONFIG / name / "train_log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def read(file: Any) -> str:
    """Return what a process has written to a file, and close it."""
    with file:
        file.seek(0)
        return file.read()


def steady(run: Run) -> list[dict[str, float]]:
    """Return the second half of a run.

    By then queues are full and caches are warm.
    """
    return run.log[len(run.log) // 2 :]


def mean(run: Run, key: str) -> float:
    """Return the mean of a column over a run's second half."""
    lines = steady(run)
    return sum(line[key] for line in lines) / len(lines)


def bench_step(place: Workplace) -> list[dict[str, Any]]:
    """Step time, share of loader wait and memory, by what layers recompute."""
    rows = []
    for remat in ("full", "none"):
        for fresh in (True, False):
            cache = place.folder / f"cache_{remat}"
            run = place.train(f"step_{remat}_{fresh}", "--remat", remat, env={"HOME": str(cache)})
            rate = mean(run, "samples_per_s")
            rows.append(
                {
                    "remat": remat,
                    "step compiled": "now" if fresh else "cached",
                    "step ms": 1000 * place.args.batch_size / rate,
                    "samples/s": rate,
                    "loader wait %": 100 * mean(run, "loader_wait"),
                    "longest wait %": 100 * max(line["loader_wait"] for line in steady(run)),
                    "peak MiB": run.peak_mib,
                    "MiB at the end": 1024 * run.log[-1]["memory_gib"],
                }
            )
    return rows


def bench_memory(place: Workplace) -> list[dict[str, Any]]:
    """Memory: the estimate, the compiled step's plan, and real growth.

    The estimate is made before compiling. The plan is that of the compiled step with its batches. The rest is
    libraries, threads, and memory that was freed but that the C library keeps.
    """
    rows = []
    for remat in ("full", "none"):
        for batch_size in (place.args.batch_size, 4 * place.args.batch_size):
            name = f"memory_{batch_size}_{remat}"
            flags = ("--batch-size", batch_size, "--remat", remat)
            # Compile in a run of its own, because the memory of the compiler is not measured here.
            place.train(f"{name}_warm", *flags, "--num-train-steps", 1)
            run = place.train(name, *flags, "--num-train-steps", 6)
            estimate = _mib(r"estimated[^:\n]*: ([\d.]+) GiB", run.stderr)
            plan = _mib(r"compiled step[^:\n]*: ([\d.]+) GiB", run.stderr)
            batches = _mib(r"batches [^:\n]*: ([\d.]+) GiB", run.stderr)
            grown = run.peak_mib - _mib(r"process [^:\n]*: ([\d.]+) GiB", run.stderr)
            rows.append(
                {
                    "estimate / plan": estimate / (plan + batches),
                    "plan / grown": (plan + batches) / grown,
                    "batch": batch_size,
                    "remat": remat,
                    "estimate MiB": estimate,
                    "plan MiB": plan,
                    "batches MiB": batches,
                    "process grew by MiB": grown,
                    "rest MiB": grown - plan - batches,
                }
            )
    return rows


def _mib(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"log of the run: found no '{pattern}'")
    return 1024 * float(found[1])


def bench_processes(place: Workplace) -> list[dict[str, Any]]:
    """Two processes with a core each, and one process with one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("processes: found one core, expected at least two")
    alone = place.train("one", cores={cores[0]})
    first = _train_two(place, cores)
    difference = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(first.log, alone.log, strict=True))
    rates = [mean(run, "samples_per_s") for run in (alone, first)]
    return [
        {
            "two / one": rates[1] / rates[0],
            "samples/s one": rates[0],
            "samples/s two": rates[1],
            "largest difference of a loss": difference,
        }
    ]


def _train_two(place: Workplace, cores: list[int]) -> Run:
    """Train in two processes and return the run of the first.

    The port was free when it was chosen. If it no longer is, another one is tried.
    """
    for attempt in range(PORT_TRIES):
        name = f"two_{attempt}"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{sock.getsockname()[1]}"
        shared = ("--coordinator-address", address, "--num-processes", 2)
        both = [place.start(name, *shared, "--process-id", i, cores={cores[i]}) for i in range(2)]
        processes = [process for process, _ in both]
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):  # The other one would wait for it.
                for process in processes:
                    process.kill()
            time.sleep(0.05)
        texts = [read(err) for _, err in both]
        if not any(process.returncode for process in processes):
            return Run(place.log(name), texts[0], 0.0)
        if "could not join" not in texts[0]:
            break
    raise SystemExit(
        f"run {name}: exit statuses {[p.returncode for p in processes]}\n{texts[0][-3000:]}{texts[1][-3000:]}"
    )


def bench_kills(place: Workplace) -> list[dict[str, Any]]:
    """A run killed three times at random steps, and an uninterrupted one.

    Their losses must be the same to the last bit.
    """
    steps = place.args.steps
    flags = ("--save-interval", max(1, steps // 10))
    unbroken = place.train("unbroken", *flags)
    kills = sorted(random.Random(place.args.seed).sample(range(1, steps - 1), 3))
    for number, kill in enumerate(kills):
        process, _ = place.start("killed", *flags, *(["--resume"] if number else []))
        while process.poll() is None and not any(line["step"] >= kill for line in place.log("killed")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(f"the run was not killed at step {kill}: exit status {process.returncode}")
    last = place.train("killed", *flags, "--resume")
    equal = [a["loss"] == b["loss"] for a, b in zip(last.log, unbroken.log, strict=True)]
    return [
        {
            "losses equal": f"{sum(equal)} of {len(equal)}",
            "killed at steps": ", ".join(map(str, kills)),
            "final loss": repr(last.log[-1]["loss"]),
            "of the uninterrupted run": repr(unbroken.log[-1]["loss"]),
        }
    ]


SECTIONS: dict[str, Callable[[Workplace], list[dict[str, Any]]]] = {
    "step": bench_step,
    "memory": bench_memory,
    "processes": bench_processes,
    "kills": bench_kills,
}


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---:|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values())} |", flush=True)


def main(args: Args) -> None:
    """Run the sections and print their tables."""
    folder = Path(tempfile.mkdtemp(prefix="bench_train_loop_"))
    try:
        place = Workplace(args, folder)
        tables = {}
        for name in args.sections:
            tables[name] = SECTIONS[name](place)
            print_table(inspect.cleandoc(SECTIONS[name].__doc__ or name), tables[name])
        if args.out is not None:
            args.out.write_text(json.dumps(tables, indent=2) + "\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(tyro.cli(Args))
