"""Commands that are killed at random moments and run again.

What counts is the result: it must equal that of a run that nobody killed, and a half-written one must never lie where
a whole one is expected.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import time
from typing import Any

from benchmarks.torture import content
from benchmarks.torture import material
from benchmarks.torture.attack import Outcome
from benchmarks.torture.processes import SCRIPTS
from benchmarks.torture.processes import Ended
from benchmarks.torture.processes import is_group_gone
from benchmarks.torture.processes import run
from benchmarks.torture.processes import started

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_TIMEOUT_S = 400.0
_CONFIG = "debug_realman"
_REPO_ID = "torture/set"
_STEPS = 6
_SLOW_FROM_S = 600.0
"""Training compiles for minutes, so it is attacked only in runs of at least this length."""
_LOGS = ("killed.log", "stdout.txt", "stderr.txt")


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that is killed, and what it makes."""

    name: str
    command: Sequence[object]
    resume: Sequence[object]
    """How to run it again after a kill."""
    product: str
    """Path of what it makes, in its folder."""
    inputs: Sequence[str] = ()
    """Folders that it reads, copied for each attack."""
    read: Callable[[Path], Any] = content.files
    """What has to be equal in the end."""
    is_atomic: bool = True
    """Whether the product must be whole or absent after every kill."""


class Kills:
    """Kills commands and runs them again."""

    name = "kills"
    share = 4.0

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._truth: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}
        # How long each command takes from its first write to its end.
        self._work_s: dict[str, float] = {}

    def open(self, folder: Path, seconds: float) -> None:
        """Make the inputs and run each command once without a kill."""
        self._base = folder
        material.write_recordings(folder / "raw", num_episodes=6, num_frames=60, size_px=(120, 160), form="raw")
        convert = ["-m", "realman", "convert", "--root", "lerobot", "--workers", "2"]
        raw = [*convert, "--raw-dir", "raw", "--repo-id", _REPO_ID]
        overwrite = [*raw, "--overwrite"]
        self._learn(Job("convert", raw, overwrite, f"lerobot/{_REPO_ID}", ["raw"]))
        # A dataset of the version before is upgraded by the same command.
        shutil.copytree(folder / f"convert/lerobot/{_REPO_ID}", folder / "old")
        _make_old(folder / "old")
        new = [*convert, "--raw-dir", "old", "--repo-id", "torture/new"]
        self._learn(Job("upgrade", new, [*new, "--overwrite"], "lerobot/torture/new", ["old"]))
        shutil.copytree(folder / "convert/lerobot", folder / "lerobot")
        stats = [SCRIPTS / "compute_norm_stats.py", "--config-name", _CONFIG, "--repo-id", _REPO_ID]
        self._learn(Job("norm-stats", stats, stats, f"assets/{_CONFIG}", ["lerobot"], read=_statistics))
        if seconds >= _SLOW_FROM_S:
            self._open_slow()

    def _open_slow(self) -> None:
        """Train once, and export what was trained."""
        shutil.copytree(self._base / "norm-stats/assets", self._base / "assets")
        train = [SCRIPTS / "train.py", _CONFIG, "--exp-name", "run", "--data.repo-id", _REPO_ID, "--batch-size", "2"]
        train += ["--num-train-steps", _STEPS, "--log-interval", "1", "--save-interval", "2"]
        again = [*train, "--resume"]
        run_dir = f"checkpoints/{_CONFIG}/run"
        job = Job("train", train, again, run_dir, ["lerobot", "assets"], read=_trained, is_atomic=False)
        self._learn(job)
        shutil.copytree(self._base / "train/checkpoints", self._base / "checkpoints")
        export = [SCRIPTS / "export.py", "--config-name", _CONFIG, "--checkpoint-dir", run_dir, "--out", "bundle"]
        self._learn(Job("export", export, [*export, "--overwrite"], "bundle", ["checkpoints"], read=_bundle))

    def attack(self, rng: random.Random, index: int, folder: Path) -> Outcome:
        """Kill one command up to three times, then let it end."""
        # Training costs most, so it comes once in many.
        fast = [job for job in self._jobs if job.name != "train"]
        slow = [job for job in self._jobs if job.name == "train"]
        job = slow[0] if slow and index % 10 == 4 else fast[index % len(fast)]
        for name in job.inputs:
            shutil.copytree(self._base / name, folder / name, symlinks=True)
        done: list[str] = []
        for number in range(1 if job.name == "train" else rng.randint(1, 3)):
            problem = self._kill(job, rng, folder, done, is_first=number == 0)
            if problem:
                return Outcome(job.name, "lost", problem, ", ".join(done))
        return self._finish(job, folder, done)

    def _kill(self, job: Job, rng: random.Random, folder: Path, done: list[str], *, is_first: bool) -> str | None:
        """Kill a command at a random moment and return what is wrong."""
        command = job.command if is_first or not (folder / job.product).exists() else job.resume
        number = rng.choice(_SIGNALS)
        # Most of the time passes while packages are imported. Most kills come after that, while files are written.
        waits_for_work = rng.random() < 0.8
        at_s = rng.uniform(0, 1.2 * self._work_s[job.name] if waits_for_work else self._seconds[job.name])
        is_whole_group = rng.random() < 0.7
        began_ns = time.time_ns()
        with (
            (folder / "killed.log").open("a") as log,
            started(command, folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_env(folder)) as process,
        ):
            if waits_for_work:
                _wait_for_work(process, job, folder, began_ns)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(at_s)
            is_late = process.poll() is not None
            if not is_late:
                (os.killpg if is_whole_group else os.kill)(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TIMEOUT_S)
            is_gone = is_group_gone(process)
        since = "the first write" if waits_for_work else "the start"
        done.append(f"{number.name} {at_s:.2f} s after {since}{' (had ended)' if is_late else ''}")
        if not is_gone:
            return "a process outlived it"
        product = folder / job.product
        if job.is_atomic and product.exists() and job.read(product) != self._truth[job.name]:
            return "half-written"
        return None

    def _finish(self, job: Job, folder: Path, done: list[str]) -> Outcome:
        """Run a command to its end and compare."""
        product = folder / job.product
        command = job.resume if product.exists() else job.command
        began_s = time.monotonic()
        ended = run(command, folder, _TIMEOUT_S, env=_env(folder))
        done.append(f"then run to the end in {time.monotonic() - began_s:.1f} s")
        if job.name == "train" and ended.is_refusal and _is_nothing_to_resume(ended):
            # The kill came before the first checkpoint, or after the last.
            is_done = "has done all its" in ended.err
            if not is_done:
                ended = run([*job.command, "--overwrite"], folder, _TIMEOUT_S, env=_env(folder))
            ended = dataclasses.replace(ended, code=0) if is_done else ended
        if ended.code != 0:
            return Outcome(job.name, "lost", "does not run again", f"{', '.join(done)}. {ended.tail}")
        if job.read(product) != self._truth[job.name]:
            return Outcome(job.name, "lost", "other result", ", ".join(done))
        return Outcome(job.name, "survived", "equal")

    def notes(self) -> list[str]:
        """Return how long each command takes without a kill."""
        if not self._seconds:
            return []
        spent = (f"{name} {s:.1f} s ({self._work_s[name]:.1f} s of work)" for name, s in self._seconds.items())
        return ["kills, uninterrupted: " + ", ".join(spent)]

    def close(self) -> None:
        """Do nothing, as every command ends with its attack."""

    def _learn(self, job: Job) -> None:
        folder = self._base / job.name
        folder.mkdir()
        for name in job.inputs:
            (folder / name).symlink_to(self._base / name)
        began_s, began_ns = time.monotonic(), time.time_ns()
        with (
            (folder / "killed.log").open("w") as log,
            started(job.command, folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_env(folder)) as process,
        ):
            _wait_for_work(process, job, folder, began_ns)
            worked_s = time.monotonic()
            code = process.wait(_TIMEOUT_S)
        if code != 0:
            raise RuntimeError(f"{job.name} does not run: {(folder / 'killed.log').read_text()[-500:]}")
        self._seconds[job.name] = time.monotonic() - began_s
        self._work_s[job.name] = time.monotonic() - worked_s
        self._truth[job.name] = job.read(folder / job.product)
        self._jobs.append(job)


def _wait_for_work(process: subprocess.Popen, job: Job, folder: Path, since_ns: int) -> None:
    """Wait until a command writes something, or ends."""
    while process.poll() is None:
        for name in (entry.name for entry in folder.iterdir() if entry.name not in (*job.inputs, *_LOGS)):
            # A file may vanish while it is looked up.
            with contextlib.suppress(OSError):
                if any(path.stat().st_mtime_ns > since_ns for path in [folder / name, *(folder / name).rglob("*")]):
                    return
        time.sleep(0.005)


def _env(folder: Path) -> dict[str, str]:
    return {"HF_LEROBOT_HOME": str(folder / "lerobot")}


def _is_nothing_to_resume(ended: Ended) -> bool:
    return "resume" in ended.err or "has done all its" in ended.err


def _make_old(root: Path) -> None:
    """Turn a dataset into one of version v2.0: without statistics per episode."""
    (root / "meta/episodes_stats.jsonl").unlink()
    (root / "meta/stats.json").write_text("{}")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.0"}))


def _statistics(folder: Path) -> Any:
    """Return the statistics and their files' names.

    Their provenance has a date in it.
    """
    stats = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("norm_stats.json")}
    return stats, sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def _bundle(folder: Path) -> Any:
    """Return the digests of a bundle's files, ours and its own."""
    found = content.files(folder)
    found["bundle.json"] = json.dumps(json.loads((folder / "bundle.json").read_text())["files"], sort_keys=True)
    return found


def _trained(run_dir: Path) -> Any:
    """Return the losses by step, and the last checkpoint's parameters."""
    log = [json.loads(line) for line in (run_dir / "train_log.jsonl").read_text().splitlines()]
    step = max(int(path.name) for path in run_dir.iterdir() if path.name.isdigit())
    ended = run(["-m", "benchmarks.torture.probes", "checkpoint", run_dir / str(step)], run_dir, _TIMEOUT_S)
    for name in ("stdout.txt", "stderr.txt"):
        (run_dir / name).unlink()
    if ended.code != 0:
        return f"no checkpoint can be read: {ended.tail}"
    return {line["step"]: line["loss"] for line in log}, step, json.loads(ended.out)
