"""Measure the robot PC's side: loop jitter, seams, stopping, install size.

    python benchmarks/bench_client.py                 # everything, about five minutes
    python benchmarks/bench_client.py --only loop stop --seconds 5

The loop, the driver, the vendor's SDK, the safety layer and the camera threads are the real ones. Only the hardware is
emulated: two controllers on loopback in a process of their own, and four cameras that return noise.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from realman import cli
from realman import spec
from realman.arrays import Image
from realman.errors import RobotError
from realman.evaluation import seams
from realman.pacing import Pacer
from realman.robots.cameras.threads import ThreadedCameras
from realman.robots.emulator import Emulator
from realman.robots.emulator.controller import motion_commands
from realman.robots.emulator.settings import HOSTS
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms
from realman.robots.rm65 import GripperSettings
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.robots.robot import connected
from realman.runtime import chunks
from realman.runtime import control
from realman.runtime.client import Prediction
from realman.runtime.safety import Limits
from realman.runtime.safety import SafetySettings

ROOT = Path(__file__).resolve().parents[1]
RATES_HZ = (50.0, 100.0)
DELAYS_MS = (0.0, 50.0, 100.0, 200.0)
CAMERA_FPS = 30
GOALS = {
    "loop p99 at 50 Hz, ms": ("at most", 2.0),
    "loop p99 at 100 Hz, ms": ("at most", 2.0),
    "async stalls up to 200 ms, per min": ("at most", 0.0),
    "trip to last motion command, ms": ("at most", 5.0),
    "import of the client, s": ("at most", 1.0),
}

Part = Literal["loop", "chunks", "stop", "install"]


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    only: tuple[Part, ...] = get_args(Part)
    """Parts to measure."""
    seconds: float = 30.0
    """How long the loop runs at each rate, s."""
    trips: int = 10
    """How many times the arms are stopped."""
    frames: int = 3000
    """Number of ticks over which chunks are played, at 50 Hz."""
    python: str = sys.executable
    """Python that creates the robot PC's environment."""
    out: Path | None = None
    """Write the figures to this JSON file as well."""


def main(args: Args) -> None:
    """Measure the robot PC's side."""
    parts: dict[Part, Callable[[Args], dict[str, Any]]] = {
        "loop": loop,
        "chunks": played_chunks,
        "stop": stops,
        "install": installed,
    }
    figures = {name: parts[name](args) for name in args.only}
    _print(figures)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


# ---- loop --------------------------------------------------------------------------------------------------------------


class NoiseCamera:
    """A camera source that returns images at its own rate."""

    def __init__(self, name: str) -> None:
        self.names: tuple[str, ...] = (name,)
        rng = np.random.default_rng(0)
        shape = (4, spec.DEFAULT_IMAGE_HEIGHT_PX, spec.DEFAULT_IMAGE_WIDTH_PX, 3)
        self._images = rng.integers(0, 256, shape, np.uint8)
        self._count = 0

    def open(self) -> None:
        """Do nothing."""

    def grab(self) -> dict[str, Image]:
        """Wait for the next image and return it."""
        time.sleep(1 / CAMERA_FPS)
        self._count += 1
        return {self.names[0]: self._images[self._count % len(self._images)].copy()}

    def close(self) -> None:
        """Do nothing."""


class Wave:
    """A policy that waves all joints around their first position.

    It takes its time, like a policy behind a network.
    """

    action_chunk = spec.ACTION_CHUNK

    def __init__(self, rate_hz: float = 50.0, seconds: float = 0.1) -> None:
        self._rate_hz = rate_hz
        self._seconds = seconds
        self._center: np.ndarray | None = None
        self._began_s = time.monotonic()

    def infer(self, state: np.ndarray, images: Any, prompt: str | None = None, **_: Any) -> Prediction:
        """Return a chunk of 50 steps."""
        if self._center is None:
            self._center, self._began_s = state.copy(), time.monotonic()
        at_s = time.monotonic() - self._began_s + np.arange(50) / self._rate_hz
        time.sleep(self._seconds)
        steps = 0.05 * np.sin(np.pi * at_s)[:, None] * np.ones(spec.NUM_DIMS)
        steps[:, list(spec.GRIPPER_DIMS)] = 0
        return Prediction(self._center + steps, self._seconds, self._seconds)


def loop(args: Args) -> dict[str, Any]:
    """Measure the jitter of the control loop during predictions.

    It runs two arms and four cameras.
    """
    return {f"{rate:g} Hz": _loop_at(rate, args.seconds) for rate in RATES_HZ}


def _loop_at(rate_hz: float, seconds: float) -> dict[str, float]:
    record = control.RunRecord()
    with _cell(rate_hz) as robot:
        player = chunks.make_player("async", Wave(rate_hz), None)
        pacer = Pacer(rate_hz)
        steps = round(seconds * rate_hz)
        with connected(robot):
            control.run(robot, player, _limits(rate_hz), record, max_steps=steps, pacer=pacer, measure=robot.measure)
    periods_ms = np.diff(record.times_s) * 1000
    off_ms = np.abs(periods_ms - 1000 / rate_hz)[round(rate_hz / 10) :]
    return {
        "rate_hz": (len(record.times_s) - 1) / (record.times_s[-1] - record.times_s[0]),
        "jitter_p50_ms": float(np.percentile(off_ms, 50)),
        "jitter_p99_ms": float(np.percentile(off_ms, 99)),
        "jitter_max_ms": float(off_ms.max()),
        "late_steps": pacer.late_ticks,
        "steps": steps,
    }


def _limits(rate_hz: float) -> Limits:
    return Limits.per_tick(SafetySettings(max_first_jump_deg=30.0), rate_hz)


@contextlib.contextmanager
def _cell(rate_hz: float, *, in_process: bool = False) -> Iterator[Rm65Robot]:
    """Provide a robot on emulated arms.

    The arms run in a process of their own, unless the caller needs access to them (`in_process`).
    """
    port, push_port = free_ports()
    settings = Rm65Settings(
        HOSTS["right"],
        HOSTS["left"],
        tcp_port=port,
        push_port=push_port,
        fps=rate_hz,
        max_state_age_s=1.0,
        max_camera_age_s=2.0,
        connect_timeout_s=30.0,
        gripper=GripperSettings(max_age_s=5.0),
    )
    cameras = ThreadedCameras([NoiseCamera(name) for name in spec.CAMERAS], max_fps=2.0 * CAMERA_FPS)
    robot = Rm65Robot(settings, cameras)
    if in_process:
        with Emulator(two_arms(port, push_port)) as emulator:
            robot.emulator = emulator  # type: ignore[attr-defined]
            yield robot
        return
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_emulate, args=(port, push_port, ready, done), daemon=True)
    process.start()
    try:
        if not ready.wait(60):
            raise RobotError("bench: the emulator did not start")
        yield robot
    finally:
        done.set()
        process.join(10)


def _emulate(port: int, push_port: int, ready: Any, done: Any) -> None:
    with Emulator(two_arms(port, push_port)):
        ready.set()
        done.wait()


# ---- chunks ------------------------------------------------------------------------------------------------------------


def played_chunks(args: Args) -> dict[str, Any]:
    """Measure stalls and jumps at the seams with `realman.evaluation.seams`.

    There is one result per execution mode and delay of a prediction.
    """
    t = np.arange(args.frames)[:, None] / 50
    recorded = 0.5 * np.sin(0.6 * t + 0.4 * np.arange(spec.NUM_DIMS))
    predict = seams.wandering_copy(recorded, 50)
    played = seams.compare(predict, len(recorded), fps=50.0, delays_ms=DELAYS_MS)
    return {f"{p.execution}, {p.delay_steps / p.fps * 1000:.0f} ms": p.figures() for p in played}


# ---- stop --------------------------------------------------------------------------------------------------------------


def stops(args: Args) -> dict[str, Any]:
    """Measure how soon the arms stop after a trip, in ms.

    Measured are the last motion command on the wire, the stop command, and when both arms stand still.
    """
    after_trip, to_stop, to_rest = [], [], []
    with _cell(50.0, in_process=True) as robot:
        for trip in range(args.trips):
            # There and back, or the joints would reach the end of their range.
            tripped_s, rest_s, records = _trip(robot, 0.01 if trip % 2 == 0 else -0.01)
            commands = [r.time_s for arm in records for r in motion_commands(arm, 0.0)]
            asked = [next(r.time_s for r in arm if "stop" in r.command) for arm in records]
            # Commands that left before the trip are not late.
            after_trip.append(max(0.0, max(commands) - tripped_s) * 1000)
            to_stop.append((max(asked) - tripped_s) * 1000)
            to_rest.append((rest_s - tripped_s) * 1000)
    return {
        "last_motion_command_ms": _spread(after_trip),
        "stop_command_ms": _spread(to_stop),
        "standstill_ms": _spread(to_rest),
        "trips": args.trips,
    }


class _Tripwire:
    """Play slow motion and trip after a while."""

    def __init__(self, ticks: int, step_rad: float) -> None:
        self._step = np.where(np.isin(np.arange(spec.NUM_DIMS), spec.GRIPPER_DIMS), 0.0, step_rad)
        self.round_trips_s: list[float] = []
        self.infer_s: list[float] = []
        self._left = ticks
        self._state: np.ndarray | None = None
        self.tripped_s = 0.0

    def next_tick(self, observe: chunks.Observe) -> chunks.Tick:
        """Return the next step, or fail like a watchdog."""
        if self._state is None:
            self._state = observe().state
        self._left -= 1
        if self._left < 0:
            self.tripped_s = time.monotonic()
            raise RobotError("bench: trip")
        self._state = self._state + self._step
        return chunks.Tick(self._state, time.monotonic())


def _trip(robot: Rm65Robot, step_rad: float) -> tuple[float, float, list[list[Any]]]:
    player = _Tripwire(25, step_rad)
    arms = list(robot.emulator.controllers.values())  # type: ignore[attr-defined]
    for arm in arms:
        arm.records.clear()
    with contextlib.suppress(RobotError), connected(robot):
        control.run(robot, player, _limits(50.0), control.RunRecord(), pacer=Pacer(50.0))
    # `connected` returns once both arms stand still.
    return player.tripped_s, time.monotonic(), [list(arm.records) for arm in arms]


# ---- install -----------------------------------------------------------------------------------------------------------

_IMPORT = """
import importlib.util, sys, time
began = time.perf_counter()
spec = importlib.util.spec_from_file_location("client", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["client"] = module
spec.loader.exec_module(module)
print(time.perf_counter() - began)
print(",".join(m for m in ("jax", "torch", "mujoco", "pyarrow") if m in sys.modules) or "-")
"""


def installed(args: Args) -> dict[str, Any]:
    """Measure a robot PC's environment and the client's import time.

    The size is that of an environment installed from its lock file.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        subprocess.run([args.python, "-m", "venv", str(venv)], check=True, capture_output=True)
        python = venv / "bin" / "python"
        empty_mb = _size_mb(venv)
        install = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", "requirements/robot-pc.lock"]
        began_s = time.monotonic()
        subprocess.run(list(map(str, install)), check=True, capture_output=True, cwd=ROOT)
        install_s = time.monotonic() - began_s
        places = (ROOT, ROOT / "third_party/openpi/packages/openpi-client/src")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, places))}
        script = str(ROOT / "examples/realman/main.py")
        times, heavy = [], "-"
        for _ in range(4):
            done = subprocess.run(
                [str(python), "-c", _IMPORT, script], check=True, capture_output=True, text=True, env=environment
            )
            seconds, heavy = done.stdout.split()
            times.append(float(seconds))
        return {
            "import_s": float(np.median(times[1:])),
            "heavy_modules_loaded": heavy,
            "installed_mb": _size_mb(venv) - empty_mb,
            "install_s": install_s,
        }


def _size_mb(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6


# ---- report ------------------------------------------------------------------------------------------------------------


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": float(np.median(values)), "max": float(np.max(values))}


def _goals(figures: dict[str, Any]) -> dict[str, float]:
    """Return the measured values that have goals."""
    found: dict[str, float] = {}
    for rate, values in figures.get("loop", {}).items():
        found[f"loop p99 at {rate}, ms"] = values["jitter_p99_ms"]
    for execution in get_args(chunks.Execution):
        ours = [v for v in figures.get("chunks", {}).values() if v["execution"] == execution]
        if ours and execution != "sync":
            found[f"{execution} stalls up to 200 ms, per min"] = max(v["stalls_per_min"] for v in ours)
    if "stop" in figures:
        found["trip to last motion command, ms"] = figures["stop"]["last_motion_command_ms"]["max"]
    if "install" in figures:
        found["import of the client, s"] = figures["install"]["import_s"]
    return found


def _print(figures: dict[str, Any]) -> None:
    table = Table(title="Client", title_justify="left")
    for name in ("figure", "found", "goal"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, value in _goals(figures).items():
        kind, goal = GOALS.get(name, ("at most", 0.0))
        table.add_row(name, f"{value:.2f}", f"{kind} {goal:g}")
    table.add_section()
    for part, values in figures.items():
        for name, value in values.items():
            table.add_row(f"{part}: {name}", _text(value), "")
    Console().print(table)


def _text(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:.2f}" if isinstance(value, float) else str(value)
    if "stalls_per_min" in value:
        jump = value["seam_jump_deg"]
        return (
            f"{value['stalls_per_min']:.0f} stalls/min, seam {jump['p50'] or 0:.2f} deg, worst {jump['max'] or 0:.2f}"
        )
    names = {"rate_hz": "Hz", "jitter_p50_ms": "p50 ms", "jitter_p99_ms": "p99 ms", "jitter_max_ms": "max ms"}
    return ", ".join(f"{names.get(name, name)} {_text(v)}" for name, v in value.items() if name != "steps")


if __name__ == "__main__":
    cli.run(main, Args)
