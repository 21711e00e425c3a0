"""One run of the emulated robot with one fault.

It is judged by what the emulated controllers received and did.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
import random
import signal
import subprocess
import time

import numpy as np
import tyro

from benchmarks.torture import robot_faults
from benchmarks.torture import robot_motion
from benchmarks.torture.processes import started
from benchmarks.torture.robot_client import FPS
from openpi.serving import contract_metadata
from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from realman import spec
from realman.robots.emulator import Emulator
from realman.robots.emulator.physics import KinematicPhysics
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms

_START_S = 90.0
_END_S = 40.0
_REST_S = 5.0
_STEPS = 250
_MANY_STEPS = 1500
"""More steps than a fault that must end the run may take to be noticed."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of one run."""

    fault: str
    """Name of the fault."""
    follow: str
    """'low' or 'high'."""
    execution: str
    """How chunks are played."""
    seed: int
    """Decides the motion and the moment."""
    folder: Path
    """Where everything goes."""


class PolicyServer:
    """The policy server of the cell, which may be replaced."""

    def __init__(self, policy: robot_faults.Wave) -> None:
        self._policy = policy
        self._stack = contextlib.ExitStack()
        self._server: WebsocketPolicyServer | None = None
        self.port = 0

    def start(self, names: tuple[str, ...] = tuple(spec.DIM_NAMES)) -> None:
        """Serve at the same port as before."""
        metadata = {
            "robot": "realman_rm65_dual",
            "dim_names": list(names),
            "cameras": ["cam_high", "cam_left_wrist"],
            "action_chunk": 25,
            "action_horizon": self._policy.horizon,
            "fps": round(FPS),
            **contract_metadata.describe_server(),
        }
        self._server = WebsocketPolicyServer(self._policy, "127.0.0.1", self.port, metadata)
        self._stack.enter_context(serve_in_thread(self._server))
        self.port = self._server.port

    def stop(self) -> None:
        """End it without a word."""
        self._stack.close()

    def swap(self) -> None:
        """Replace it with one that has the left arm first."""
        self.stop()
        for _ in range(50):
            # The port may take a moment to be free.
            with contextlib.suppress(OSError):
                self.start((*spec.DIM_NAMES[7:], *spec.DIM_NAMES[:7]))
                return
            time.sleep(0.1)


def main(args: Args) -> None:
    """Run once and write the judgement to `result.json`."""
    rng = random.Random(args.seed)
    fault = robot_faults.FAULTS[args.fault]
    policy = robot_faults.Wave(rng, FPS)
    server = PolicyServer(policy)
    port, push_port = free_ports()
    physics = robot_motion.Sampled(KinematicPhysics())
    server.start()
    log_path = args.folder / "client.log"
    with Emulator(two_arms(port, push_port), physics) as emulator, log_path.open("w") as log:
        steps = _STEPS if fault.expected in ("done", "either") else _MANY_STEPS
        flags = ["--tcp-port", port, "--push-port", push_port, "--server-port", server.port, "--steps", steps]
        flags += ["--follow", args.follow, "--execution", args.execution, "--folder", args.folder]
        with started(["-m", "benchmarks.torture.robot_client", *flags], args.folder, stdout=log, stderr=log) as client:
            cell = robot_faults.Cell(emulator, client, server, policy, args.folder, rng)
            hung = _break(cell, fault)
            # The arms must come to rest by themselves, even without a client.
            time.sleep(0.2)
            at_rest = _comes_to_rest(emulator)
            code = client.poll()
        problems = robot_motion.problems(emulator, physics, args.follow)
        figures = robot_motion.figures(emulator, physics, args.follow)
        robot_motion.save(emulator, args.folder / "commands.json")
    server.stop()
    if not at_rest:
        problems.append("an arm did not come to rest")
    how, wrong = ("hung", "the client did not end") if hung else _judge(fault.expected, code, args.folder)
    result = {"problems": [*problems, *filter(None, [wrong])], "how": how, "figures": figures}
    (args.folder / "result.json").write_text(json.dumps(result))


def _break(cell: robot_faults.Cell, fault: robot_faults.Fault) -> bool:
    """Wait for motion, break something and wait for the end.

    Returns:
        Whether the client hangs.
    """
    end_s = time.monotonic() + _START_S
    while not _has_moved(cell.emulator) and cell.client.poll() is None:
        if time.monotonic() > end_s:
            return True
        time.sleep(0.02)
    time.sleep(cell.rng.uniform(0.3, 2.0))
    if cell.client.poll() is None:
        fault.apply(cell)
    try:
        cell.client.wait(_END_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _has_moved(emulator: Emulator) -> bool:
    return all(any(r.command == "movej_canfd" for r in arm.records) for arm in emulator.controllers.values())


def _comes_to_rest(emulator: Emulator) -> bool:
    end_s = time.monotonic() + _REST_S
    while time.monotonic() < end_s:
        before = {side: arm.position.joints.copy() for side, arm in emulator.controllers.items()}
        time.sleep(0.1)
        if all(np.abs(arm.position.joints - before[side]).max() < 1e-6 for side, arm in emulator.controllers.items()):
            return True
    return False


def _judge(expected: robot_faults.Expected, code: int | None, folder: Path) -> tuple[str, str | None]:
    """Return how the run ended, and what is wrong with it."""
    text = (folder / "client.log").read_text()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    last = errors[-1] if errors else text[-300:]
    if code is not None and code < 0:
        is_ours = expected == "killed" and code == -signal.SIGKILL
        # The SDK may crash. Then only the arms count.
        return ("killed" if is_ours else f"SDK crashed ({signal.Signals(-code).name})"), None
    if "Traceback" in text:
        return "traceback", f"traceback: {text[-600:]}"
    if code == 0:
        wrong = expected in ("ends", "signal", "killed")
        return "done", "the run continued to its end" if wrong else None
    if expected == "signal":
        return "signal", None if code in (130, 143) else f"exit code {code}: {last}"
    if code != 1 or len(errors) != 1:
        return "no reason", f"exit code {code}: {last}"
    report = folder / "run/run.json"
    reason = json.loads(report.read_text())["ended_by"] if report.exists() else "no report"
    if reason not in errors[0]:
        return "no reason", f"the report says '{reason}', the client said '{last}'"
    return "ended with a reason", f"ended: {last}" if expected == "done" else None


if __name__ == "__main__":
    main(tyro.cli(Args))
