"""The settings of a robot site, and the robot that they name.

They are a frozen dataclass read from `site.toml`. `examples/realman/site.example.toml` shows every key. The names carry
the units. The file holds no secrets: the API key of a server comes from the environment variable REALMAN_API_KEY.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from realman import spec
from realman.errors import SiteError
from realman.ranges import ConnectTimeout
from realman.ranges import Port
from realman.ranges import Range
from realman.ranges import ReplyTimeout
from realman.ranges import Seed
from realman.ranges import check_on_real_arms
from realman.ranges import check_settings
from realman.robots.cameras.settings import CameraSettings
from realman.robots.cameras.settings import open_cameras
from realman.robots.replay import ReplayRobot
from realman.robots.rm65 import GripperSettings
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.robots.robot import Robot
from realman.runtime.chunks import BLEND_STEPS
from realman.runtime.chunks import Execution
from realman.runtime.safety import SafetySettings
from realman.station import toml_config

RobotName = Literal["sim", "emulated", "replay", "rm65"]
"""Which robot to drive.

'sim': simulated arms in simulated time. 'emulated': the driver and the vendor's SDK against emulated controllers, in
real
time. 'replay': a recorded episode or the log of a run. 'rm65': the real arms."""


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Where the policy server is and how long to wait for it."""

    host: str = "127.0.0.1"
    port: Port = 8000
    connect_timeout_s: ConnectTimeout = 30.0
    """How long to wait for the server to come up, s."""
    reply_timeout_s: ReplyTimeout = 30.0
    """How long one prediction may take before the run is stopped, s."""
    jpeg_quality: Annotated[int, Range(1, 100, "what JPEG has")] | None = None
    """Send images as JPEG of this quality, 1..100: a tenth of the bytes, for a slow network. None sends pixels."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class SimSettings:
    """The simulated cell, for robot = "sim" and "emulated"."""

    task_seed: Seed = 0
    """Seed of the scene. Object poses and the start pose are drawn from it."""
    realtime: bool = False
    """Keep wall-clock time, as real arms do, instead of running as fast as possible. Emulated arms always keep it."""
    fps: Annotated[float, Range(1.0, 200.0, "as of the real arms")] = float(spec.DEFAULT_FPS)
    """Control rate of the simulated robot, Hz: the rate that the policy was trained at. Emulated arms have that of [rm65]."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class ReplaySettings:
    """What robot = "replay" plays."""

    path: str | None = None
    """A recording (episode_<n>.hdf5), which has images to predict from, or a run.npz, which has none."""
    fps: Annotated[int, Range(1, 1000, "frames per second of a recording")] = spec.DEFAULT_FPS
    """Its frames per second."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class Site:
    """One robot with its server and limits."""

    robot: RobotName = "sim"
    """Which robot to drive. See `RobotName`."""
    prompt: str | None = None
    """Task text for the policy. None lets the server use its default."""
    execution: Execution = "sync"
    """How chunks are played. See `realman.runtime.chunks`."""
    blend_steps: Annotated[int, Range(1, 1000, "steps of a chunk")] = BLEND_STEPS
    """Steps of a cross-fade, for execution = "blend"."""
    server: ServerSettings = dataclasses.field(default_factory=ServerSettings)
    safety: SafetySettings = dataclasses.field(default_factory=SafetySettings)
    rm65: Rm65Settings = dataclasses.field(default_factory=Rm65Settings)
    cameras: dict[str, CameraSettings] = dataclasses.field(default_factory=dict)
    """Cameras of the real robot by name."""
    sim: SimSettings = dataclasses.field(default_factory=SimSettings)
    replay: ReplaySettings = dataclasses.field(default_factory=ReplaySettings)

    def __post_init__(self) -> None:
        check_settings(self)
        if unknown := [name for name in self.cameras if name not in spec.CAMERAS]:
            raise SiteError(f"cameras: unknown camera '{unknown[0]}', expected one of {', '.join(spec.CAMERAS)}")
        if self.is_real:
            self._check_real_arms()

    def _check_real_arms(self) -> None:
        cameras = {f"cameras.{name}": camera for name, camera in self.cameras.items()}
        check_on_real_arms({"safety": self.safety, "rm65": self.rm65, "rm65.gripper": self.rm65.gripper, **cameras})
        for name, camera in self.cameras.items():
            if self.rm65.max_camera_age_s < 1 / camera.fps:
                raise SiteError(
                    f"[rm65] max_camera_age_s: found {self.rm65.max_camera_age_s}, expected at least "
                    f"{1 / camera.fps:.3g}, the time between two images at 'fps' of [cameras.{name}]"
                )

    @property
    def is_real(self) -> bool:
        """Whether something real can move."""
        return self.robot == "rm65"

    @property
    def has_real_time(self) -> bool:
        """Whether the robot keeps wall-clock time by itself.

        Otherwise its time advances with each target.
        """
        return self.robot in ("emulated", "rm65")


SIM_SITE = Site(
    # The task of the simulated cell, equal to realman.robots.sim.task.TASK.
    prompt="pick up the cube and place it in the tray",
    safety=SafetySettings(
        max_joint_speed_deg_s=225.0,
        max_first_jump_deg=360.0,
        max_limit_ticks=1_000_000,
        max_joint_acceleration_deg_s2=100_000.0,
        # Without a graphics card, rendering four cameras takes long, and so does a prediction.
        max_observation_age_ms=10_000.0,
        max_policy_age_ms=60_000.0,
        max_overrun_ms=10_000.0,
        max_late_ticks=1_000_000,
    ),
    rm65=Rm65Settings(
        max_state_age_s=20.0,
        max_camera_age_s=20.0,
        reply_timeout_s=20.0,
        stop_timeout_s=20.0,
        connect_timeout_s=60.0,
        gripper=GripperSettings(max_age_s=20.0),
    ),
)
"""The site without a file: a simulated robot.

It may use its full speed, a lost policy harms nothing, and the computer may be slow."""


def open_robot(site: Site) -> Robot:
    """Return the robot that the site names, not yet connected.

    Raises:
        SiteError: The robot is not available in this installation.
    """
    if site.robot == "rm65":
        if not site.cameras:
            raise SiteError("site: robot = 'rm65' has no cameras. Add tables such as [cameras.cam_high]")
        return Rm65Robot(site.rm65, open_cameras(site.cameras), site.safety.motion())
    if site.robot == "replay":
        if site.replay.path is None:
            raise SiteError("site: robot = 'replay' has nothing to play. Add [replay] path = \"...\", or --replay")
        return ReplayRobot(Path(site.replay.path), site.replay.fps)
    # The other robots need packages that a robot PC may lack.
    try:
        if site.robot == "sim":
            from realman.robots.sim.robot import SimRobot

            return SimRobot(task_seed=site.sim.task_seed, fps=site.sim.fps)
        from realman.robots.emulator.robot import EmulatedRobot

        return EmulatedRobot(site.sim.task_seed, settings=site.rm65, limits=site.safety.motion())
    except ModuleNotFoundError as e:
        package = (e.name or "realman").partition(".")[0]
        if package == "realman":
            raise
        remedy = "Install it: pip install 'realman-openpi[sim]'"
        raise SiteError(f"site: robot = '{site.robot}' needs the package '{package}'. {remedy}") from e


def load_site(path: Path) -> Site:
    """Read `site.toml`.

    Raises:
        SiteError: The file is missing or not TOML, or a key, type or value is wrong. For an unknown key, the message
        names
            the nearest known one.
    """
    if not path.is_file():
        raise SiteError(f"{path}: no such file. Copy examples/realman/site.example.toml")
    return toml_config.load(path, Site)
