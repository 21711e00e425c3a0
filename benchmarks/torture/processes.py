"""Start commands in process groups of their own, and leave none behind."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "third_party/openpi/scripts"
_SOURCES = (ROOT, ROOT / "third_party/openpi/src", ROOT / "third_party/openpi/packages/openpi-client/src")
_GROUP_END_S = 20.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int | None
    """Exit code, negative for a signal, None if it hung and was killed."""
    out: str
    err: str

    @property
    def is_refusal(self) -> bool:
        """Whether it said in one line what is wrong, and nothing else."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.code in (1, 2) and len(errors) == 1 and "Traceback" not in self.err

    @property
    def tail(self) -> str:
        """The end of what it said, for a report."""
        return f"exit code {self.code}, stderr: {' | '.join(self.err.strip().splitlines()[-4:])[-500:]}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with this tree in front and no accelerator."""
    path = os.pathsep.join([*map(str, _SOURCES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    offline = {"OPENPI_OFFLINE": "1", "WANDB_MODE": "disabled", "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, "PYTHONPATH": path, **offline, **(extra or {})}


@contextlib.contextmanager
def started(command: Sequence[object], folder: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """Run a Python command in a group that ends with the block."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment(options.pop("env", None)),
        start_new_session=True,
        # A shell that starts this in the background ignores Ctrl-C, and what is ignored is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    try:
        yield process
    finally:
        end_group(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def end_group(process: subprocess.Popen) -> None:
    """Kill a group that `started` made, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_group_gone(process: subprocess.Popen, wait_s: float = _GROUP_END_S) -> bool:
    """Return whether every process of a group ends in time."""
    end_s = time.monotonic() + wait_s
    while time.monotonic() < end_s:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def run(command: Sequence[object], folder: Path, timeout_s: float, **options: Any) -> Ended:
    """Run a Python command to its end."""
    with (folder / "stdout.txt").open("w+") as out, (folder / "stderr.txt").open("w+") as err:
        with started(command, folder, stdout=out, stderr=err, stdin=subprocess.DEVNULL, **options) as process:
            try:
                code: int | None = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                code = None
        return Ended(code, *(_whole(file) for file in (out, err)))


def _whole(file: Any) -> str:
    file.seek(0)
    return file.read()
