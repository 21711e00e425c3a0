"""`realman client`: run a policy on the arms.

    realman client --prompt "pick up the cube"

This drives the simulated robot. `--site site.toml` names another one. The client observes, asks the policy server and
executes, at the robot's own rate and inside the site's limits. Before real arms move:
  * Clear the workspace, and keep a hand on the hardware emergency stop all the time.
  * Read the pre-flight table first. Without --enable-motion nothing real moves.
  * Remember that Ctrl-C stops both arms at any moment. The live view shows the other keys.

Exit codes: 0 done or ended by the key, 1 stopped by an error (the arms are stopped), 130 or 143 stopped by the stop
key, Ctrl-C or SIGTERM.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import logging
import os
from pathlib import Path
import sys
from typing import Any, TypeVar

from realman import cli
from realman import spec
from realman.errors import RealmanError
from realman.errors import RejectedError
from realman.pacing import Pacer
from realman.ranges import ConnectTimeout
from realman.ranges import Count
from realman.ranges import Port
from realman.ranges import check_flags
from realman.robots import robot as _robot
from realman.runtime import chunks
from realman.runtime import control
from realman.runtime import safety
from realman.runtime.client import API_KEY_ENV
from realman.runtime.client import PolicyClient
from realman.runtime.recording import dataset
from realman.runtime.recording.recorder import Recorder
from realman.runtime.steering import SteeredPolicy
from realman.runtime.steering import Steering
from realman.runtime.watchdogs import Watchdogs
from realman.station import site_config
from realman.station.keyboard import Keyboard
from realman.station.preflight import confirm
from realman.station.preflight import preflight
from realman.station.report import report
from realman.station.run import Run
from realman.station.view import View
from realman.station.view import Watched

logger = logging.getLogger(__name__)

_SettingsT = TypeVar("_SettingsT", site_config.Site, site_config.ServerSettings, site_config.ReplaySettings)

_SWITCH_INTERVAL_S = 0.0005


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of `realman client`, which override the site's file."""

    site: Path | None = None
    """Settings of your robot site (TOML). By default a simulated robot. See site.example.toml."""
    robot: site_config.RobotName | None = None
    """Which robot: 'sim', 'emulated' (the real driver against emulated controllers), 'replay' (a recording) or 'rm65'.
    By default the site's."""
    replay: Path | None = None
    """What the robot 'replay' plays: a recording (.hdf5) or the log of a run (run.npz). Implies --robot replay."""
    prompt: str | None = None
    """Task text. By default the site's, else the server's."""
    host: str | None = None
    """Policy server. By default the site's, else this machine."""
    port: Port | None = None
    """Port of the policy server. By default the site's, else 8000."""
    connect_timeout: ConnectTimeout | None = None
    """How long to wait for the server, s."""
    execution: chunks.Execution | None = None
    """How to play chunks: 'sync' waits for each, 'async' predicts while one plays, 'blend' also fades from one to the
    next, 'rtc' lets the policy itself continue the steps that are played meanwhile."""
    action_chunk: Count | None = None
    """Steps to execute of each prediction. By default as many as the server recommends."""
    max_steps: Count | None = 500
    """Number of control steps. None runs until you stop it."""
    enable_motion: bool = False
    """Let real arms move, after one confirmation. The simulated robot needs no permission."""
    yes: bool = False
    """Skip the confirmation."""
    dry_run: bool = False
    """Do everything except send targets to the robot."""
    record: Path | None = None
    """Record episodes into this folder: full-size images, state and what was sent. 'realman convert' reads it."""
    record_at_start: bool = True
    """Begin an episode with the first step. Otherwise the key 'e' begins it."""
    record_repo_id: str | None = None
    """After the run, convert the folder's recordings to a LeRobot dataset of this name."""
    view: bool = True
    """In a terminal, show the live view and take keys."""
    out_dir: Path = Path("data/client")
    """Where the run's figures (run.json) and its targets tick by tick (run.npz) go."""

    def __post_init__(self) -> None:
        check_flags(self)


def main(args: Args) -> int:
    """Run a policy on the robot, or on the simulated one."""
    site = resolve_site(args)
    return run_site(args, site, site_config.open_robot(site))


def resolve_site(args: Args) -> site_config.Site:
    """Return the site's settings, overridden by the flags."""
    # Never use the wide limits of the simulation for real arms.
    default = site_config.Site(robot="rm65") if args.robot == "rm65" else site_config.SIM_SITE
    site = default if args.site is None else site_config.load_site(args.site)
    server = _with_flags(site.server, host=args.host, port=args.port, connect_timeout_s=args.connect_timeout)
    replay = _with_flags(site.replay, path=None if args.replay is None else str(args.replay))
    robot = args.robot or ("replay" if args.replay else None)
    # An empty prompt on the command line means the site's.
    flags = {"robot": robot, "prompt": args.prompt or None, "execution": args.execution}
    return _with_flags(dataclasses.replace(site, server=server, replay=replay), **flags)


def _with_flags(settings: _SettingsT, **flags: Any) -> _SettingsT:
    """Return the settings with every flag that was given."""
    return dataclasses.replace(settings, **{name: value for name, value in flags.items() if value is not None})


def run_site(args: Args, site: site_config.Site, robot: _robot.Robot) -> int:
    """Check everything, then run.

    The robot is stopped and released however the run ends.

    Returns:
        The exit code.
    """
    # Real arms move only with permission.
    moves = not args.dry_run and (args.enable_motion or not site.is_real)
    if not moves:
        logger.warning("dry run: no target is sent to the robot%s", ". See --enable-motion" if site.is_real else "")
    # Places for the results are tried before anything connects or moves.
    cli.check_place(args.out_dir, "--out-dir")
    if args.record is not None and moves:
        cli.check_place(args.record, "--record")
    if args.record_repo_id:
        dataset.check_target(args.record_repo_id)
    steering = Steering(site.prompt)
    with control.stop_on_signals(steering), _connect(args, site, robot.fps) as client:
        run = Run(site, _player(site, client, steering), steering)
        try:
            # Stop the arms first and finish the recording after that.
            with _recorder(args, run, robot, client, moves=moves) as recorder, _robot.connected(robot):
                joint_range = robot.joint_range() if isinstance(robot, _robot.RangedRobot) else None
                limits = safety.Limits.per_tick(site.safety, robot.fps, joint_range)
                preflight(site, robot, client, limits)
                if moves and site.is_real and not args.yes:
                    confirm()
                if recorder and args.record_at_start:
                    recorder.start()
                with _console(args, run, robot, client, recorder):
                    drive(args, run, robot, client, limits, recorder, moves=moves)
        except control.StopRequested as stop:
            run.ended_by = str(stop)
            return 128 + stop.number
        except RealmanError as e:
            run.ended_by = str(e)
            raise
        except Exception as e:
            run.ended_by = f"{type(e).__name__}: {e}"
            raise
        finally:
            is_written = report(run, args.out_dir)
    return finish_recording(args, recorder) or (0 if is_written else 1)


def _player(site: site_config.Site, client: PolicyClient, steering: Steering) -> chunks.ChunkPlayer:
    policy = SteeredPolicy(client, steering)
    return chunks.make_player(site.execution, policy, site.prompt, blend_steps=site.blend_steps)


@contextlib.contextmanager
def _recorder(
    args: Args, run: Run, robot: _robot.Robot, client: PolicyClient, *, moves: bool
) -> Iterator[Recorder | None]:
    """Yield a recorder if one was asked for and targets are sent.

    Targets that are not sent are not demonstrations.
    """
    if args.record is None or not moves:
        if args.record is not None:
            logger.warning("dry run: nothing is recorded")
        yield None
        return
    steering, default = run.steering, client.info.metadata.get("prompt")
    if not isinstance(default, str):
        default = None
    if not (steering.prompt or default):
        raise RejectedError("recording: no task text is known. Pass --prompt")
    has_real_time = run.site.has_real_time or run.site.sim.realtime
    with Recorder(
        args.record,
        robot.fps,
        lambda: steering.prompt or default,
        may_wait=not has_real_time,
    ) as recorder:
        yield recorder


@contextlib.contextmanager
def _console(
    args: Args, run: Run, robot: _robot.Robot, client: PolicyClient, recorder: Recorder | None
) -> Iterator[None]:
    """Take keys and show the view, as far as the terminal allows."""
    steering, site = run.steering, run.site

    def set_prompt(text: str) -> None:
        steering.prompt = text
        logger.info("prompt: the next request carries '%s'", text)

    actions = {" ": steering.toggle_pause, "s": steering.stop, "q": steering.end}
    names = "space pause/resume   p prompt   s slow stop   q end"
    if recorder:
        actions |= {"e": recorder.toggle, "x": recorder.discard}
        names += "   e begin/save episode   x discard episode"
    with Keyboard(actions, "p", set_prompt) if args.view else contextlib.nullcontext() as keyboard:
        watched = Watched(
            run=run,
            horizon=client.info.action_horizon,
            keyboard=keyboard,
            ages_s=robot.ages_s if isinstance(robot, _robot.MeasuringRobot) else None,
            age_limits_s={
                "arm": site.rm65.max_state_age_s,
                "cam": site.rm65.max_camera_age_s,
                "prediction": site.safety.max_policy_age_ms / 1000,
            },
            recording=recorder.status if recorder else None,
            keys=names + "   Ctrl-C stop at once",
        )
        # Threads that draw and encode must release the interpreter before a tick counts as late. The default is 5 ms.
        before_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            with View(watched) if args.view else contextlib.nullcontext():
                yield
        finally:
            sys.setswitchinterval(before_s)


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
        jpeg_quality=server.jpeg_quality,
    )


def drive(
    args: Args,
    run: Run,
    robot: _robot.Robot,
    client: PolicyClient,
    limits: safety.Limits,
    recorder: Recorder | None,
    *,
    moves: bool,
) -> None:
    """Run the control loop to its end."""
    # Simulated time advances with each target, so nothing has to be waited for and no frame can be too old.
    site = run.site
    # A prediction during the motion takes real time, so the simulation must keep real time too.
    if site.has_real_time or site.sim.realtime or site.execution != "sync":
        run.pacer = Pacer(robot.fps)
    watchdogs = Watchdogs.from_settings(site.safety) if site.has_real_time else None

    def renew() -> chunks.ChunkPlayer:
        # Keep the figures, and forget only the plan.
        fresh = _player(site, client, run.steering)
        fresh.round_trips_s, fresh.infer_s = run.player.round_trips_s, run.player.infer_s
        run.player = fresh
        return fresh

    control.run(
        robot if moves else _robot.ShadowRobot(robot),
        run.player,
        limits,
        run.record,
        max_steps=args.max_steps,
        pacer=run.pacer,
        watchdogs=watchdogs,
        steering=run.steering,
        renew=renew,
        measure=robot.measure if isinstance(robot, _robot.MeasuringRobot) else None,
        tick_observer=recorder,
    )
    run.ended_by = "the end key" if run.steering.is_ending else f"{len(run.record.sent)} steps done"
    if moves and isinstance(robot, _robot.TaskRobot):
        run.task_done = robot.is_task_done()


def finish_recording(args: Args, recorder: Recorder | None) -> int:
    """Make the requested dataset, or log how to make it.

    Returns:
        An exit code.
    """
    if recorder is None or not recorder.saved:
        return 0
    assert args.record is not None
    if args.record_repo_id:
        return dataset.convert(args.record, args.record_repo_id)
    logger.info("%d episodes recorded. Convert them: %s", len(recorder.saved), dataset.command(args.record))
    return 0
