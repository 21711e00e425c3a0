"""Measure speed and acceleration of what arrives at the controllers.

    python benchmarks/bench_motion.py                     # about four minutes
    PYTHONPATH=OTHER_TREE python benchmarks/bench_motion.py   # the same of another tree

A stand-in policy asks for more speed than the site allows, and the loop is held up now and then. The loop, the driver
and the vendor's SDK are the real ones. The controllers are emulated in a process of their own, which keeps every command.
"""

import contextlib
import dataclasses
import json
import multiprocessing
from pathlib import Path
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from realman import cli
from realman import spec
from realman.errors import RobotError
from realman.pacing import Pacer
from realman.robots.emulator import Emulator
from realman.robots.emulator.settings import HOME_DEG
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

FOLLOWS = ("low", "high")
EXECUTIONS = ("sync", "async", "blend", "rtc")
LATE_MS = (0.0, 30.0, 60.0, 120.0)
FPS = 50.0
HIGH_FOLLOW_HZ = 100.0
LATE_EVERY = 40
"""Ticks from one late command to the next. An odd number of chunks lies between two, so no seam hides it."""
PREDICTION_S = 0.08
SILENCE_S = 0.045
SILENCE_PERIODS = 4.0
"""In a longer silence of both the arms stop at the last command, at any speed."""
TOLERANCE = 1.01
SITE = SafetySettings(max_first_jump_deg=60.0)


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    seconds: float = 3.0
    """Length of each run, s."""
    out: Path | None = None
    """Write the figures to this JSON file as well."""


class Zigzag:
    """A policy that swings all joints faster than the site allows."""

    action_chunk = spec.ACTION_CHUNK
    fps = FPS

    def __init__(self) -> None:
        self._home = np.array([*np.deg2rad(HOME_DEG), 0.5] * 2)
        self._began_s = time.monotonic()

    def require_rtc(self) -> None:
        """Do nothing, because a left-over needs no model here."""

    def infer(self, state: np.ndarray, images: Any, prompt: str | None = None, *_: Any, **__: Any) -> Prediction:
        """Return a chunk of 50 steps."""
        at_s = time.monotonic() - self._began_s + np.arange(50) / FPS
        time.sleep(PREDICTION_S)
        # A triangle of 90 deg/s, 12 deg to both sides.
        wave = np.deg2rad(12.0) * (2 / np.pi) * np.arcsin(np.sin(2 * np.pi * at_s / (4 * 12.0 / 90.0)))
        return Prediction(
            self._home + wave[:, None] * np.ones(spec.NUM_DIMS) * np.where(_IS_JOINT, 1.0, 0.5), PREDICTION_S, None
        )


_IS_JOINT = np.isin(np.arange(spec.NUM_DIMS), spec.JOINT_DIMS)


def main(args: Args) -> None:
    """Measure every mode of follow and execution with late commands."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    port, push_port = free_ports()
    process = context.Process(target=_emulate, args=(port, push_port, theirs), daemon=True)
    process.start()
    rows: list[dict[str, Any]] = []
    try:
        if not ours.poll(60):
            raise RobotError("bench: the emulator did not start")
        ours.recv()
        for follow in FOLLOWS:
            for execution in EXECUTIONS:
                for late_ms in LATE_MS:
                    rows.append(_measure(args, follow, execution, late_ms, port, push_port, ours))
                    print(".", end="", flush=True)
        print()
    finally:
        with contextlib.suppress(OSError):
            ours.send("end")
        process.join(10)
    _print(rows)
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


def _emulate(port: int, push_port: int, pipe: Any) -> None:
    """Run the controllers, and hand over what they received when asked."""
    with Emulator(two_arms(port, push_port)) as emulator:
        pipe.send("ready")
        while pipe.recv() == "take":
            taken = []
            for controller in emulator.controllers.values():
                records, controller.records = controller.records, []
                streamed = [r for r in records if r.command == "movej_canfd"]
                taken.append(([r.time_s for r in streamed], [r.request["joint"][:6] for r in streamed]))
            pipe.send(taken)


def _measure(
    args: Args,
    follow: str,
    execution: str,
    late_ms: float,
    port: int,
    push_port: int,
    pipe: Any,
) -> dict[str, Any]:
    """Return the largest speed and acceleration of one run."""
    settings = Rm65Settings(
        HOSTS["right"],
        HOSTS["left"],
        tcp_port=port,
        push_port=push_port,
        fps=FPS,
        follow=follow,  # type: ignore[arg-type]
        high_follow_rate_hz=HIGH_FOLLOW_HZ,
        max_state_age_s=5.0,
        connect_timeout_s=30.0,
        gripper=GripperSettings(kind="none"),
    )
    robot, tick = Rm65Robot(settings), [0]

    def late() -> np.ndarray:
        # Called right before each target is sent.
        tick[0] += 1
        if tick[0] % LATE_EVERY == 0:
            time.sleep(late_ms / 1000)
        return robot.measure()

    player = chunks.make_player(execution, Zigzag(), None)  # type: ignore[arg-type]
    with connected(robot):
        limits = Limits.per_tick(SITE, FPS, robot.joint_range())
        control.run(
            robot,
            player,
            limits,
            control.RunRecord(),
            max_steps=round(args.seconds * FPS),
            pacer=Pacer(FPS),
            measure=late,
        )
    pipe.send("take")
    rate_hz = HIGH_FOLLOW_HZ if follow == "high" else FPS
    arms = [_largest(np.array(times_s), np.array(joints) / 1000, rate_hz) for times_s, joints in pipe.recv()]
    speed, acceleration, silences = (np.array(values) for values in zip(*arms, strict=True))
    return {
        "follow": follow,
        "execution": execution,
        "late_ms": late_ms,
        "speed_deg_s": speed.max(axis=0).tolist(),
        "acceleration_deg_s2": acceleration.max(axis=0).tolist(),
        "silences_at_speed": int(silences.sum()),
    }


def _largest(times_s: np.ndarray, degrees: np.ndarray, rate_hz: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Return each joint's largest speed and acceleration, and the silences at speed.

    A controller executes one command per period, so the period is the nominal one. A sender keeps a period between two
    commands, so a burst shows that the receiver was late, and its commands are dated back. After a silence the arms have
    stopped, so the next command may also start from rest.
    """
    num = np.arange(len(times_s)) * 0.99 / rate_hz
    sent_s = np.minimum.accumulate((times_s - num)[::-1])[::-1] + num
    is_silent = np.diff(sent_s) > max(SILENCE_S, SILENCE_PERIODS / rate_hz)
    steps = np.diff(degrees, axis=0)
    changes = np.abs(np.diff(steps, axis=0)) * rate_hz**2
    at_speed = np.abs(steps[:-1]).max(axis=1) * rate_hz**2 > TOLERANCE * SITE.max_joint_acceleration_deg_s2
    from_rest = np.abs(steps[1:]) * rate_hz**2
    changes = np.where(is_silent[1:, None], np.minimum(changes, from_rest), changes)
    return np.abs(steps).max(axis=0) * rate_hz, changes.max(axis=0), int((is_silent[1:] & at_speed).sum())


def _print(rows: list[dict[str, Any]]) -> None:
    speed_limit, acceleration_limit = SITE.max_joint_speed_deg_s, SITE.max_joint_acceleration_deg_s2
    table = Table(title="Commands at the controllers, worst joint of each arm's six", title_justify="left")
    for name in ("follow", "execution", "late ms", "deg/s", "of limit", "deg/s2", "of limit", "left at speed", "kept"):
        table.add_column(name, justify="left" if name in ("follow", "execution") else "right")
    for row in rows:
        speed, acceleration = max(row["speed_deg_s"]), max(row["acceleration_deg_s2"])
        ratios = speed / speed_limit, acceleration / acceleration_limit
        table.add_row(
            row["follow"],
            row["execution"],
            f"{row['late_ms']:.0f}",
            f"{speed:.1f}",
            f"{ratios[0]:.3f}",
            f"{acceleration:.0f}",
            f"{ratios[1]:.3f}",
            str(row["silences_at_speed"]),
            "yes" if max(ratios) <= TOLERANCE else "NO",
        )
    Console(width=120).print(table)
    kept = sum(
        max(row["speed_deg_s"]) <= TOLERANCE * speed_limit
        and max(row["acceleration_deg_s2"]) <= TOLERANCE * acceleration_limit
        for row in rows
    )
    print(f"{kept} of {len(rows)} runs kept both limits of {speed_limit:g} deg/s and {acceleration_limit:g} deg/s2")


if __name__ == "__main__":
    cli.run(main, Args)
