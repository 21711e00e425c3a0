"""Run many short commands without paying for their imports.

One process imports everything once and forks for each command. The child is a command like any other: it has its own
process group, its own output and an exit code.
"""

from collections.abc import Sequence
import contextlib
import importlib
import json
import os
from pathlib import Path
import runpy
import signal
import subprocess
import sys
import time

from benchmarks.torture.processes import Ended
from benchmarks.torture.processes import started

_MODULES = (
    "realman.data.convert",
    "realman.data.inspection.command",
    "realman.station.site_config",
    "openpi.training.lerobot.dataset",
    "openpi.models.model",
    "openpi.shared.cli",
    "benchmarks.torture.probes",
)
_KILLED_S = 30.0


class Forked:
    """A process that forks commands.

    Use it from one thread, and close it.
    """

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "forked.log").open("w")
        self._context = started(
            ["-m", "benchmarks.torture.forked"],
            folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._process = self._context.__enter__()
        self._child: int | None = None

    def run(self, module: str, flags: Sequence[object], folder: Path, timeout_s: float = 60.0) -> Ended:
        """Run a module as `python -m` does.

        Returns:
            How it ended. A command that hangs is killed, and has no exit code.
        """
        job = {"module": module, "flags": [str(f) for f in flags], "folder": str(folder), "timeout_s": timeout_s}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self._child = int(self._process.stdout.readline())
        code = json.loads(self._process.stdout.readline())
        self._child = None
        texts = [(folder / name).read_text(errors="replace") for name in ("stdout.txt", "stderr.txt")]
        return Ended(code, *texts)

    def close(self) -> None:
        """End the process, and the command that it runs."""
        if self._child is not None and self._process.poll() is None:
            _kill_group(self._child)
        self._context.__exit__(None, None, None)
        self._log.close()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _serve() -> None:
    # Results go to the parent on the first output, so commands must not inherit it.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in _MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            replies.close()
            _become(job)
        # The child sets its group too. One of the two is first, and a kill always finds the group.
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        replies.write(f"{child}\n")
        replies.flush()
        replies.write(json.dumps(_wait(child, job["timeout_s"])) + "\n")
        replies.flush()


def _become(job: dict) -> None:
    """Be the command. Never returns."""
    code: object = 1
    try:
        os.setpgid(0, 0)
        os.chdir(job["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, handle in (("stdout.txt", 1), ("stderr.txt", 2)):
            os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), handle)
        sys.argv = [job["module"], *job["flags"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as e:
        code = e.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _wait(child: int, timeout_s: float) -> int | None:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _kill_group(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    _kill_group(child)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    _serve()
