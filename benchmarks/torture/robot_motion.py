"""What the emulated arms were made to do, measured on their side."""

from collections.abc import Iterator
import json
import math
from pathlib import Path

import numpy as np

from benchmarks.torture.robot_client import FPS
from benchmarks.torture.robot_client import HIGH_RATE_HZ
from benchmarks.torture.robot_client import SAFETY
from realman import spec
from realman.robots.emulator import Emulator
from realman.robots.emulator.controller import Controller
from realman.robots.emulator.physics import ArmPosition
from realman.robots.emulator.physics import ArmTarget
from realman.robots.emulator.physics import KinematicPhysics

_WIRE_DEG = 0.001
"""Joints travel in units of this."""
_TOLERANCE = 1.01
_REST_PERIODS = 4.0


class Sampled:
    """Weightless arms that keep every position that they were in."""

    def __init__(self, physics: KinematicPhysics) -> None:
        self._physics = physics
        self.samples: dict[str, list[np.ndarray]] = {side: [] for side in spec.SIDES}

    def place(self, side: str, position: ArmPosition) -> None:
        """Put an arm at its power-on position."""
        self._physics.place(side, position)

    def set_target(self, side: str, target: ArmTarget) -> None:
        """Command one arm."""
        self._physics.set_target(side, target)

    def position(self, side: str) -> ArmPosition:
        """Return the measured position of one arm."""
        return self._physics.position(side)

    def advance(self, dt_s: float) -> None:
        """Let time pass, and keep where the arms are."""
        self._physics.advance(dt_s)
        for side, samples in self.samples.items():
            samples.append(self._physics.position(side).joints.copy())


def problems(emulator: Emulator, physics: Sampled, follow: str) -> list[str]:
    """Return every limit that was not kept."""
    found = []
    for side, arm in emulator.controllers.items():
        stream, times_s = _stream(arm)
        if not np.isfinite(stream).all() or not np.isfinite(physics.samples[side]).all():
            found.append(f"{side} arm: a command or a position is not finite")
            continue
        found += [f"{side} arm: {text}" for text in _range_problems(stream, arm)]
        for name, values, limit, rounding in _rates(stream, times_s, follow):
            largest = float(values.max(initial=0.0))
            if largest > limit * _TOLERANCE + rounding:
                found.append(f"{side} arm: {name} {largest:.1f}, the site allows {limit:g}")
        found += [f"{side} arm: {text}" for text in _after_stop(arm)]
    return found


def figures(emulator: Emulator, physics: Sampled, follow: str) -> dict[str, float]:
    """Return the largest speed and acceleration on the wire, deg/s and deg/s^2."""
    del physics
    largest: dict[str, float] = {}
    for arm in emulator.controllers.values():
        for name, values, _, _ in _rates(*_stream(arm), follow):
            largest[name] = max(largest.get(name, 0.0), float(values.max(initial=0.0)))
    return largest


def save(emulator: Emulator, path: Path) -> None:
    """Write every command as it arrived, to look into a loss."""
    found = {
        side: [(r.time_s, r.command, r.is_accepted, r.request) for r in arm.records]
        for side, arm in emulator.controllers.items()
    }
    path.write_text(json.dumps(found))


def _stream(arm: Controller) -> tuple[np.ndarray, np.ndarray]:
    """Return the streamed targets (n, 6), deg, up to the first stop.

    The first row is the start. With them comes when each of the others arrived, s.
    """
    stops = [r.time_s for r in arm.records if "stop" in r.command]
    until_s = min(stops, default=math.inf)
    sent = [r for r in arm.records if r.command == "movej_canfd" and r.time_s <= until_s]
    rows = [[float(value) * _WIRE_DEG for value in r.request["joint"]] for r in sent]
    return np.array([np.rad2deg(arm.settings.home), *rows]), np.array([r.time_s for r in sent])


def _rates(stream: np.ndarray, times_s: np.ndarray, follow: str) -> Iterator[tuple[str, np.ndarray, float, float]]:
    """Yield (name, values, limit, error by rounding) at the wire's rate."""
    rate_hz = HIGH_RATE_HZ if follow == "high" else FPS
    steps = np.diff(stream, axis=0)
    yield "speed deg/s", np.abs(steps) * rate_hz, SAFETY.max_joint_speed_deg_s, _WIRE_DEG * rate_hz
    change = np.diff(steps, axis=0, prepend=np.zeros((1, 6)))
    # A client that the machine kept from sending has let the arm come to rest. It may start from there.
    has_rested = np.diff(times_s, prepend=times_s[:1]) > _REST_PERIODS / rate_hz
    change = np.where(has_rested[:, None], np.minimum(np.abs(change), np.abs(steps)), change)
    allowed = SAFETY.max_joint_acceleration_deg_s2
    yield "acceleration deg/s2", np.abs(change) * rate_hz**2, allowed, 2 * _WIRE_DEG * rate_hz**2


def _range_problems(stream: np.ndarray, arm: Controller) -> list[str]:
    upper = np.rad2deg(spec.ARM_UPPER_RAD) - SAFETY.joint_margin_deg
    over = np.abs(stream).max(axis=0) - np.maximum(upper, np.abs(np.rad2deg(arm.settings.home)))
    found = [f"joint {i + 1} was sent {v:.2f} deg beyond the site's range" for i, v in enumerate(over) if v > _WIRE_DEG]
    grips = [r.request["position"] for r in arm.records if r.command == "set_gripper_position"]
    return found + [f"gripper was sent {p}" for p in grips if not 0 <= p <= 1000]


def _after_stop(arm: Controller) -> list[str]:
    stops = [r.time_s for r in arm.records if r.command == "set_arm_stop"]
    late = [r for r in arm.records if stops and r.time_s > stops[0] and r.command == "movej_canfd"]
    return [f"{len(late)} motion commands came after the stop"] if late else []
