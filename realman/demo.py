"""Run every stage on simulated recordings.

The stages are sample, convert, norm stats, train, serve, offline evaluation and client. Run the demo with
`realman demo` or `make demo`. Each stage is the `make` command that you would type, started as its own process group.
This module puts the stages in order, measures time and memory, keeps the policy server running, and prints what was made.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any
from urllib.error import URLError
from urllib.request import ProxyHandler
from urllib.request import build_opener

import psutil
from rich.console import Console
from rich.table import Table

from realman import cli
from realman.errors import RealmanError
from realman.errors import ServerError
from realman.ranges import Count
from realman.ranges import check_flags

CONFIG = "debug_realman"
REPO_ID = "realman/demo"
EXP = "demo"
SERVER_START_S = 180.0
"""Longest wait for the server, enough for loading and compiling on a busy laptop."""

SERVER_STOP_S = 20.0

# In these, make passes its command line on to another make.
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the demo."""

    sample_dir: Path = Path("data/sample")
    """Folder of simulated recordings. They are reused if they are already there."""

    out_dir: Path = Path("data/demo")
    """Folder for the evaluation, the server's log and the summary."""

    client_steps: Count = 250
    """Number of control steps of the simulated robot, at 50 per second."""

    def __post_init__(self) -> None:
        check_flags(self)


@dataclasses.dataclass
class StageResult:
    """What one stage cost."""

    name: str
    seconds: float = 0.0
    peak_mib: float = 0.0


class Meter:
    """Wall time and peak memory of a process group.

    Memory is sampled 5 times per second. It is the proportional set size summed over the group, so that pages shared by
    workers count once.
    """

    def __init__(self, name: str, pid: int) -> None:
        self.result = StageResult(name)
        self._pid = pid
        self._start = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(0.2):
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self._pid)
                total = sum(_memory_bytes(p) for p in [root, *root.children(recursive=True)])
                self.result.peak_mib = max(self.result.peak_mib, total / 2**20)

    def stop(self) -> StageResult:
        """Stop measuring and return the result."""
        self._done.set()
        self._thread.join()
        self.result.seconds = time.monotonic() - self._start
        return self.result


def _memory_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", 0) or memory.uss)
    except psutil.Error:
        return 0


def make_command(target: str, **variables: str | Path) -> list[str]:
    """Return the `make` command of a stage, as you would type it."""
    return ["make", target, *(f"{name}={value}" for name, value in variables.items())]


def start(command: list[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a stage in its own process group.

    It has this process's environment, without the variables of the `make` that may have started it.
    """
    own = {name: value for name, value in os.environ.items() if name not in _OF_MAKE}
    return subprocess.Popen(
        command, stdout=output, stderr=output and subprocess.STDOUT, start_new_session=True, env=own
    )


def run_stage(name: str, command: list[str], console: Console) -> StageResult:
    """Run one stage to its end.

    Raises:
        RealmanError: It failed. Its own message is above.
    """
    console.rule(f"[bold]{name}[/bold]", align="left")
    console.print(f"$ {' '.join(command)}", highlight=False, markup=False)
    process = start(command)
    meter = Meter(name, process.pid)
    try:
        code = process.wait()
    except BaseException:
        end_group(process)
        raise
    finally:
        result = meter.stop()
    if code:
        raise RealmanError(f"demo: stage '{name}' ended with exit code {code}. Its message is above")
    return result


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process group, by force after `SERVER_STOP_S`.

    Does nothing if the process has ended.
    """
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(SERVER_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def policy_server(command: list[str], port: int, log_path: Path, results: list[StageResult]) -> Iterator[None]:
    """Keep the policy server running inside the block.

    It is stopped no matter how the block ends.

    Raises:
        ServerError: It ended, or was not ready after `SERVER_START_S`.
    """
    with log_path.open("wb") as log:
        process = start(command, log)
        meter = Meter("serve", process.pid)
        try:
            _wait_until_ready(process, port, log_path)
            yield
        finally:
            end_group(process)
            results.append(meter.stop())


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + SERVER_START_S
    # A proxy set in the environment does not know this machine.
    direct = build_opener(ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(
                f"policy server ended with exit code {process.returncode} before it was ready. See {log_path}"
            )
        with contextlib.suppress(URLError, OSError), direct.open(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
            if reply.status == 200:
                return
        time.sleep(0.3)
    raise ServerError(f"policy server was not ready after {SERVER_START_S:.0f} s. See {log_path}")


def free_port() -> int:
    """Return a loopback port that nothing listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main(args: Args) -> int:
    """Run every stage on simulated recordings, in minutes on a CPU."""
    console = Console(stderr=True)
    for folder, flag in ((args.out_dir, "--out-dir"), (args.sample_dir, "--sample-dir")):
        cli.check_place(folder, flag)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    results: list[StageResult] = []

    def stage(name: str, target: str, **variables: str | Path) -> None:
        results.append(run_stage(name, make_command(target, **variables), console))

    # From recordings to a trained policy.
    run = {"CONFIG": CONFIG, "REPO_ID": REPO_ID, "EXP": EXP}
    stage("sample", "sample", DATA=args.sample_dir)
    stage("convert", "convert", DATA=args.sample_dir / "train", REPO_ID=REPO_ID, ARGS="--overwrite")
    stage("norm-stats", "norm-stats", CONFIG=CONFIG, REPO_ID=REPO_ID)
    stage("train", "train", **run, ARGS="--overwrite")

    # The server runs while the policy is evaluated and drives the simulated robot.
    port = str(free_port())
    log_path = args.out_dir / "server.log"
    serve = make_command("serve", CONFIG=CONFIG, EXP=EXP, PORT=port)
    console.rule("[bold]serve[/bold]", align="left")
    console.print(f"$ {' '.join(serve)} > {log_path}", highlight=False, markup=False)
    with policy_server(serve, int(port), log_path, results):
        offline_dir = args.out_dir / "offline"
        stage(
            "offline",
            "offline",
            DATA=args.sample_dir / "heldout",
            PORT=port,
            ARGS=f"--out-dir {shlex.quote(str(offline_dir))} --episodes 0 1",
        )
        client_args = f"--max-steps {args.client_steps} --out-dir {shlex.quote(str(args.out_dir / 'client'))}"
        stage("client", "client", PORT=port, ARGS=client_args)

    report(args, results, console)
    return 0


def report(args: Args, results: list[StageResult], console: Console) -> None:
    """Print what each stage cost and where its product is.

    The same numbers go to `summary.json`.
    """
    order = ["sample", "convert", "norm-stats", "train", "serve", "offline", "client"]
    products = {
        "sample": args.sample_dir,
        "convert": Path("data/lerobot") / REPO_ID,
        "norm-stats": Path("assets") / CONFIG,
        "train": Path("checkpoints") / CONFIG / EXP,
        "serve": args.out_dir / "server.log",
        "offline": args.out_dir / "offline",
        "client": args.out_dir / "client",
    }
    table = Table(title="What the demo made", title_justify="left")
    table.add_column("stage")
    table.add_column("time s", justify="right")
    table.add_column("peak memory MiB", justify="right")
    table.add_column("product")
    for result in sorted(results, key=lambda r: order.index(r.name)):
        table.add_row(result.name, f"{result.seconds:.0f}", f"{result.peak_mib:.0f}", str(products[result.name]))
    # The server runs while offline and client do, so its time is not added.
    total = sum(r.seconds for r in results if r.name != "serve")
    console.print(table)
    console.print(f"total {total:.0f} s without setup (the server's time includes offline and client)", highlight=False)
    outcome = read_outcome(products["train"], products["offline"])
    console.print(
        f"training loss {outcome['first_loss']:.3f} -> {outcome['last_loss']:.3f}, error on unseen recordings "
        f"relative to holding still: {', '.join(f'{r:.2f}' for r in outcome['error_ratios'])}",
        highlight=False,
        soft_wrap=True,
    )
    summary = {"total_s": total, "stages": [dataclasses.asdict(r) for r in results], **outcome}
    summary_path = args.out_dir / "summary.json"
    summary_path.write_text(json.dumps(summary, indent=2) + "\n")
    for plot in sorted((args.out_dir / "offline").glob("*.png")):
        console.print(f"plot: {plot}", highlight=False)
    sys.stdout.write(f"{summary_path}\n")


def read_outcome(run_dir: Path, offline_dir: Path) -> dict[str, Any]:
    """Return the results of training and evaluation, from their files.

    Args:
        run_dir: Folder of the training run, with its log.
        offline_dir: Folder of the evaluation, one JSON per episode.
    """
    log = [json.loads(line) for line in (run_dir / "train_log.jsonl").read_text().splitlines()]
    reports = [json.loads(path.read_text()) for path in sorted(offline_dir.glob("*.json"))]
    return {
        "first_loss": log[0]["loss"],
        "last_loss": log[-1]["loss"],
        "error_ratios": [report["overall_ratio"] for report in reports],
        "joint_errors_deg": [report["joints"]["mae"] for report in reports],
    }
