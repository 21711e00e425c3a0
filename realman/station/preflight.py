"""The last checks before anything moves, and the operator's confirmation."""

import platform

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from realman import spec
from realman.errors import RejectedError
from realman.robots import robot as _robot
from realman.runtime import safety
from realman.runtime.client import PolicyClient
from realman.station import site_config

SAFETY_LINES = (
    "Real arms are about to move. Clear the workspace of people and things.",
    "Keep a hand on the hardware emergency stop. Ctrl-C here stops both arms as well.",
)


def preflight(site: site_config.Site, robot: _robot.Robot, client: PolicyClient, limits: safety.Limits) -> None:
    """Check robot, cameras and one prediction, and print the results.

    Raises:
        RejectedError: The run must not start.
        ServerError: The prediction failed.
    """
    # Check first, so that a table is only printed for a run that may start.
    observation = robot.observe()
    safety.check_start(observation.state)
    if missing := [name for name in client.info.cameras if name not in observation.images]:
        raise RejectedError(
            f"robot: no frame of {', '.join(missing)}, expected frames of {', '.join(client.info.cameras)}. "
            "Add the missing ones to the site's cameras"
        )
    prediction = client.infer(observation.state, observation.images, site.prompt)
    safety.check_first_jump(prediction.actions[0], observation.state, limits)
    # The table: what the operator reads before the arms move.
    jump = np.abs(prediction.actions[0] - observation.state)[list(spec.JOINT_DIMS)].max()
    info, settings = client.info, site.safety
    findings = robot.preflight if isinstance(robot, _robot.InspectedRobot) else []
    rows = {
        "robot": f"{site.robot}, {robot.fps:g} Hz",
        **{f"{f.arm}: {f.check}": f.found for f in findings},
        "server": f"{info.address}, {info.metadata.get('config', 'unnamed policy')}",
        "cameras": ", ".join(info.cameras),
        "prompt": site.prompt or "the server's default",
        "chunk": f"{client.action_chunk} of {info.action_horizon} steps, then predict again ({site.execution})",
        "limits": f"{settings.max_joint_speed_deg_s:g} deg/s, {settings.joint_margin_deg:g} deg from the joints' ends",
        "first prediction": f"{prediction.round_trip_s * 1000:.0f} ms, {np.rad2deg(jump):.1f} deg from the arms",
        "versions": f"python {platform.python_version()}, numpy {np.__version__}",
    }
    table = Table(title="Pre-flight", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    Console(stderr=True).print(table)


def confirm() -> None:
    """Ask once before real arms move.

    Raises:
        RejectedError: The answer was not "yes".
    """
    console = Console(stderr=True)
    for line in SAFETY_LINES:
        console.print(line, style="bold yellow")
    try:
        answer = console.input("Type 'yes' to start: ")
    except EOFError:
        answer = ""
    if answer.strip().lower() != "yes":
        raise RejectedError("motion: not confirmed, nothing moved. Type 'yes' to let the arms move")
