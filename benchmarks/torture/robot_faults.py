"""What can break in the cell, and what must come of it."""

from collections.abc import Callable
import dataclasses
import os
from pathlib import Path
import random
import signal
import subprocess
import time
from typing import Literal, Protocol

import numpy as np

from realman.robots.emulator import Emulator
from realman.robots.emulator.controller import ERR_COLLISION
from realman.robots.emulator.faults import EVERYTHING

Expected = Literal["done", "ends", "either", "signal", "killed"]
"""'done': the run takes all its steps. 'ends': it ends with a reason. 'either': both are right. 'signal': it ends by a
signal with its exit code. 'killed': nobody is left to give a reason, but the arms come to rest."""


class Server(Protocol):
    """The policy server of the cell."""

    def stop(self) -> None:
        """End it without a word."""

    def swap(self) -> None:
        """Replace it with one for another order of the arms."""


@dataclasses.dataclass(eq=False)
class Cell:
    """What a fault may break."""

    emulator: Emulator
    client: subprocess.Popen
    server: Server
    policy: "Wave"
    folder: Path
    rng: random.Random

    @property
    def side(self) -> str:
        """One of the arms."""
        return self.rng.choice(sorted(self.emulator.controllers))

    def camera(self, fault: str) -> None:
        """Let a camera of the client's process break."""
        (self.folder / "camera_fault").write_text(fault)


class Wave:
    """A policy that waves all joints around their first position."""

    horizon = 50

    def __init__(self, rng: random.Random, fps: float) -> None:
        self.spoil: Callable[[np.ndarray], np.ndarray] = lambda chunk: chunk
        self.delay_s = 0.02
        self.count = 0
        self._fps = fps
        self._speed = rng.uniform(0.3, 3.0)
        self._size = rng.uniform(0.05, 0.4)
        self._center: np.ndarray | None = None
        self._began_s = time.monotonic()

    def infer(self, obs: dict) -> dict:
        """Return a chunk for the time of its request."""
        self.count += 1
        state = np.array(obs["state"])
        if self._center is None:
            self._center, self._began_s = state, time.monotonic()
        time.sleep(self.delay_s)
        t_s = time.monotonic() - self._began_s + np.arange(self.horizon)[:, None] / self._fps
        actions = self._center + self._size * np.sin(self._speed * t_s)
        actions[:, [6, 13]] = 0.5 + 0.5 * np.cos(t_s)
        return {"actions": self.spoil(actions)}

    def reset(self) -> None:
        """Do nothing."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that breaks."""

    apply: Callable[[Cell], object]
    expected: Expected


def _silence(field: str) -> Callable[[Cell], object]:
    return lambda cell: setattr(cell.emulator.controllers[cell.side].faults, field, True)


def _commands(field: str, name: str) -> Callable[[Cell], object]:
    return lambda cell: setattr(cell.emulator.controllers[cell.side].faults, field, frozenset({name}))


def _controller_error(cell: Cell) -> None:
    arm = cell.emulator.controllers[cell.side]
    cell.emulator.call(lambda: arm.fail(ERR_COLLISION))


def _joint_error(cell: Cell) -> None:
    arm, joint, bits = cell.emulator.controllers[cell.side], cell.rng.randrange(6), 1 << cell.rng.randrange(15)
    cell.emulator.call(lambda: arm.fail_joint(joint, bits))


def _slow_replies(cell: Cell) -> None:
    cell.emulator.controllers[cell.side].faults.reply_delay_s = cell.rng.uniform(0.02, 0.2)


def _late_once(cell: Cell) -> None:
    cell.policy.delay_s = cell.rng.uniform(0.3, 1.5)
    count = cell.policy.count
    while cell.policy.count == count and cell.client.poll() is None:
        time.sleep(0.01)
    cell.policy.delay_s = 0.02


def _frozen_process(cell: Cell) -> None:
    """Let the client's process stand still for several moments."""
    for _ in range(10):
        if cell.client.poll() is not None:
            return
        os.kill(cell.client.pid, signal.SIGSTOP)
        time.sleep(cell.rng.choice((0.03, 0.06, 0.12)))
        os.kill(cell.client.pid, signal.SIGCONT)
        time.sleep(0.15)


def _spoil(change: Callable[[np.ndarray, random.Random], np.ndarray]) -> Callable[[Cell], object]:
    return lambda cell: setattr(cell.policy, "spoil", lambda chunk: change(chunk.copy(), cell.rng))


def _not_finite(chunk: np.ndarray, rng: random.Random) -> np.ndarray:
    chunk[rng.randrange(len(chunk)), rng.randrange(14)] = rng.choice((np.nan, np.inf, -np.inf))
    return chunk


def _jumping(chunk: np.ndarray, rng: random.Random) -> np.ndarray:
    chunk[rng.randrange(len(chunk)) :] += rng.choice((-1, 1)) * rng.uniform(0.1, 1.5)
    return chunk


def _jittering(chunk: np.ndarray, rng: random.Random) -> np.ndarray:
    return chunk + np.random.default_rng(rng.getrandbits(32)).uniform(-0.3, 0.3, chunk.shape)


def _out_of_range(chunk: np.ndarray, rng: random.Random) -> np.ndarray:
    chunk[:, rng.randrange(14)] += rng.choice((-50.0, 50.0, 1e9))
    return chunk


def _wrong_shape(chunk: np.ndarray, rng: random.Random) -> np.ndarray:
    return rng.choice((chunk[:, :13], chunk[:3], chunk[0], chunk[:, :, None], chunk[:0]))


def _signal(number: signal.Signals) -> Callable[[Cell], object]:
    return lambda cell: os.kill(cell.client.pid, number)


FAULTS: dict[str, Fault] = {
    "nothing": Fault(lambda cell: None, "done"),
    "connection lost": Fault(lambda cell: cell.emulator.reset_connections(cell.side), "ends"),
    "push silent": Fault(_silence("is_push_silent"), "ends"),
    "push frozen": Fault(_silence("is_push_frozen"), "ends"),
    "controller error": Fault(_controller_error, "ends"),
    "joint error": Fault(_joint_error, "ends"),
    "controller hangs": Fault(_commands("ignored", EVERYTHING), "ends"),
    "gripper dead": Fault(_commands("ignored", "get_gripper_state"), "ends"),
    "motion refused": Fault(_commands("rejected", "movej_canfd"), "ends"),
    "slow replies": Fault(_slow_replies, "either"),
    "policy late once": Fault(_late_once, "either"),
    "policy silent": Fault(lambda cell: setattr(cell.policy, "delay_s", 12.0), "ends"),
    "server killed": Fault(lambda cell: cell.server.stop(), "ends"),
    "server swapped": Fault(lambda cell: cell.server.swap(), "ends"),
    "chunk not finite": Fault(_spoil(_not_finite), "ends"),
    "chunk jumps": Fault(_spoil(_jumping), "either"),
    "chunk jitters": Fault(_spoil(_jittering), "either"),
    "chunk out of range": Fault(_spoil(_out_of_range), "ends"),
    "chunk of wrong shape": Fault(_spoil(_wrong_shape), "ends"),
    "camera frozen": Fault(lambda cell: cell.camera("frozen"), "ends"),
    "camera hangs": Fault(lambda cell: cell.camera("hangs"), "ends"),
    "camera gone": Fault(lambda cell: cell.camera("gone"), "ends"),
    "client stands still": Fault(_frozen_process, "either"),
    "Ctrl-C": Fault(_signal(signal.SIGINT), "signal"),
    "terminated": Fault(_signal(signal.SIGTERM), "signal"),
    "client killed": Fault(_signal(signal.SIGKILL), "killed"),
}
