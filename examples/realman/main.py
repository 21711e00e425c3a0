"""Run a policy on the arms: observe, ask the server, execute, at the robot's own rate, inside the site's limits.

    python examples/realman/main.py --prompt "pick up the cube"

drives the simulated robot; `--site site.toml` names another one. Before real arms move:
  * clear the workspace, and keep a hand on the hardware emergency stop all the time;
  * look at the pre-flight table first: without --enable-motion nothing real moves;
  * Ctrl-C stops both arms at any moment.

Exit codes: 0 done, 1 stopped by an error (the arms are stopped), 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

import dataclasses
import json
import logging
import os
from pathlib import Path
import platform
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from realman import chunks
from realman import cli
from realman import control
from realman import robot as _robot
from realman import safety
from realman import site_config
from realman import spec
from realman import watchdogs
from realman.client import API_KEY_ENV
from realman.client import PolicyClient
from realman.errors import RealmanError
from realman.errors import RejectedError
from realman.pacing import Pacer

logger = logging.getLogger(__name__)

SAFETY_LINES = (
    "Real arms are about to move. Clear the workspace of people and things.",
    "Keep a hand on the hardware emergency stop; Ctrl-C here stops both arms as well.",
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the robot client; they win over the site's file."""

    site: Path | None = None
    """Settings of the robot site (TOML); by default a simulated robot. See site.example.toml."""
    robot: site_config.RobotName | None = None
    """Which robot: 'sim', 'emulated' (the real driver against emulated controllers) or 'rm65'; by default the site's."""
    prompt: str | None = None
    """Task text; by default the site's, else the server's."""
    host: str | None = None
    """Policy server; by default the site's, else this machine."""
    port: int | None = None
    """Its port; by default the site's, else 8000."""
    connect_timeout: float | None = None
    """How long to wait for the server, s."""
    execution: chunks.Execution | None = None
    """How chunks are played: 'sync' waits for each, 'async' predicts meanwhile, 'blend' also fades from one to the next."""
    action_chunk: int | None = None
    """Steps executed of each prediction; by default what the server recommends."""
    max_steps: int | None = 500
    """Control steps; None goes on until Ctrl-C."""
    enable_motion: bool = False
    """Let real arms move, after one confirmation. The simulated robot needs no permission."""
    yes: bool = False
    """Skip the confirmation."""
    dry_run: bool = False
    """Do everything but send targets to the robot."""
    out_dir: Path = Path("data/client")
    """Where the run's figures (run.json) and its targets tick by tick (run.npz) go."""


@dataclasses.dataclass
class Run:
    """One run with its outcome."""

    site: site_config.Site
    player: chunks.ChunkPlayer
    record: control.RunRecord
    pacer: Pacer | None = None
    ended_by: str = "an internal error"
    task_done: bool | None = None
    """Whether the simulated task succeeded; None when nobody can tell."""


def main(args: Args) -> int:
    """Run a policy on the robot, or on the simulated one."""
    site = resolve_site(args)
    return run_site(args, site, site_config.open_robot(site))


def resolve_site(args: Args) -> site_config.Site:
    """Return the site's settings with the flags on top."""
    # The liberal limits of the simulation are not for real arms, whatever the flags say.
    default = site_config.Site(robot="rm65") if args.robot == "rm65" else site_config.SIM_SITE
    site = default if args.site is None else site_config.load_site(args.site)
    flags = {"host": args.host, "port": args.port, "connect_timeout_s": args.connect_timeout}
    server = dataclasses.replace(site.server, **{k: v for k, v in flags.items() if v is not None})
    flags = {"robot": args.robot, "prompt": args.prompt, "execution": args.execution}
    return dataclasses.replace(site, server=server, **{k: v for k, v in flags.items() if v})


def run_site(args: Args, site: site_config.Site, robot: _robot.Robot) -> int:
    """Check everything, then run; returns the exit code. The robot is stopped and released however this ends."""
    moves = not args.dry_run and (args.enable_motion or not site.is_real)
    if not moves:
        logger.warning("dry run: no target is sent to the robot%s", "; see --enable-motion" if site.is_real else "")
    limits = safety.Limits.per_tick(site.safety, robot.fps)
    with control.stop_on_signals(), _connect(args, site, robot.fps) as client:
        player = chunks.make_player(site.execution, client, site.prompt, blend_steps=site.blend_steps)
        run = Run(site, player, control.RunRecord())
        try:
            with _robot.connected(robot):
                preflight(site, robot, client, limits)
                if moves and site.is_real and not args.yes:
                    confirm()
                drive(run, robot if moves else _robot.ShadowRobot(robot), limits, args.max_steps)
        except control.StopSignal as stop:
            run.ended_by = str(stop)
            return 128 + stop.number
        except RealmanError as e:
            run.ended_by = str(e)
            raise
        finally:
            report(run, args.out_dir)
    return 0


def _connect(args: Args, site: site_config.Site, fps: float) -> PolicyClient:
    server = site.server
    return PolicyClient.connect(
        server.host,
        server.port,
        cameras=spec.CAMERAS,
        fps=fps,
        action_chunk=args.action_chunk,
        api_key=os.environ.get(API_KEY_ENV),
        connect_timeout_s=server.connect_timeout_s,
        reply_timeout_s=server.reply_timeout_s,
    )


def preflight(site: site_config.Site, robot: _robot.Robot, client: PolicyClient, limits: safety.Limits) -> None:
    """Check robot, cameras and one prediction before anything moves, and print what was found.

    Raises:
        RejectedError: The run must not start.
        ServerError: The prediction failed.
    """
    observation = robot.observe()
    safety.check_start(observation.state)
    if missing := [name for name in client.info.cameras if name not in observation.images]:
        raise RejectedError(
            f"robot: no frame of {', '.join(missing)}; the policy needs {', '.join(client.info.cameras)}"
        )
    prediction = client.infer(observation.state, observation.images, site.prompt)
    safety.check_first_jump(prediction.actions[0], observation.state, limits)
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
        raise RejectedError("motion: not confirmed; nothing moved")


def drive(run: Run, robot: _robot.Robot, limits: safety.Limits, max_steps: int | None) -> None:
    """Run the loop to its end."""
    # Simulated time advances with each target, so there is nothing to wait for and no frame can be too old.
    site = run.site
    # A prediction beside the motion takes real time, so the simulation must too.
    if site.has_real_time or site.sim.realtime or isinstance(run.player, chunks.AsyncPlayer):
        run.pacer = Pacer(robot.fps)
    dogs = watchdogs.Watchdogs.of(site.safety) if site.has_real_time else None
    control.run(robot, run.player, limits, run.record, max_steps=max_steps, pacer=run.pacer, watchdogs=dogs)
    run.ended_by = f"{len(run.record.sent)} steps done"
    if isinstance(robot, _robot.TaskRobot):
        run.task_done = robot.is_task_done()


def report(run: Run, out_dir: Path) -> None:
    """Print the run's figures and write them to `out_dir`; nothing when the run never began."""
    if not run.record.sent:
        return
    summary = {
        "ended_by": run.ended_by,
        "task_done": run.task_done,
        "prompt": run.site.prompt,
        **run.record.summary(run.player, run.pacer),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "run.json").write_text(json.dumps(summary, indent=1) + "\n")
    np.savez_compressed(out_dir / "run.npz", **run.record.arrays())
    console = Console()
    console.print(_summary_table(summary))
    console.print(
        f"figures {out_dir / 'run.json'}, targets {out_dir / 'run.npz'}", highlight=False, markup=False, soft_wrap=True
    )


def _summary_table(summary: dict[str, Any]) -> Table:
    table = Table(title="Run", title_justify="left", show_header=False)
    rows = {
        "ended by": summary["ended_by"],
        "task": {None: "not judged", True: "done", False: "not done"}[summary["task_done"]],
        "steps": f"{summary['steps']} in {summary['duration_s']:.1f} s, {summary['stand_stills']} stand-stills included; "
        f"{summary['stalled_steps']} held for a late chunk",
        "predictions": f"{summary['predictions']}, {_milliseconds(summary['round_trip_ms'])}",
        "on the server": _milliseconds(summary["infer_ms"]),
        "late steps": _late(summary),
        "limited steps": f"{summary['clamped_steps']} (range: {_counts(summary['range_clamps'])}; "
        f"speed: {_counts(summary['speed_clamps'])})",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _milliseconds(latency: dict[str, float] | None) -> str:
    return f"p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms, max {latency['max']:.0f} ms" if latency else "-"


def _late(summary: dict[str, Any]) -> str:
    if summary["late_steps"] is None:
        return "- (simulated time)"
    return f"{summary['late_steps']}, worst {summary['worst_late_ms']:.1f} ms"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


if __name__ == "__main__":
    cli.run(main, Args)
