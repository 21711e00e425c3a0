"""A whole robot without hardware.

The real driver and the real SDK talk to emulated controllers in the simulated cell.
"""

from collections.abc import Sequence
import dataclasses

from realman import spec
from realman.arrays import JointVec
from realman.errors import NotConnectedError
from realman.robots.cameras.threads import ThreadedCameras
from realman.robots.emulator.scene import SceneCameras
from realman.robots.emulator.scene import ScenePhysics
from realman.robots.emulator.server import Emulator
from realman.robots.emulator.settings import HOSTS
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms
from realman.robots.limits import MotionLimits
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.robots.robot import CheckResult
from realman.robots.robot import RobotObservation


class EmulatedRobot:
    """Implements `realman.robots.robot.Robot` in real time.

    Everything except the arms and cameras is what runs on the robot PC.
    """

    def __init__(
        self,
        task_seed: int = 0,
        cameras: Sequence[str] = spec.CAMERAS,
        settings: Rm65Settings | None = None,
        size_px: tuple[int, int] = (spec.DEFAULT_IMAGE_HEIGHT_PX, spec.DEFAULT_IMAGE_WIDTH_PX),
        limits: MotionLimits | None = None,
    ) -> None:
        """Describe the robot. `connect` opens it.

        Args:
            task_seed: Seed of the poses of cube, tray and arms.
            cameras: Cameras to draw.
            settings: Settings of the driver. The emulator's addresses and ports replace its own. None means the
                defaults.
            size_px: Height and width of the images.
            limits: What every command keeps. None limits to what the arms can do.
        """
        self._task_seed = task_seed
        self._cameras = tuple(cameras)
        self._settings = settings or Rm65Settings()
        self._size_px = size_px
        self._limits = limits
        self._emulator: Emulator | None = None
        self._robot: Rm65Robot | None = None
        self._physics: ScenePhysics | None = None

    @property
    def fps(self) -> float:
        """Rate at which `send` expects targets, Hz."""
        return self._settings.fps

    @property
    def preflight(self) -> list[CheckResult]:
        """Results of the driver's checks. Empty when not connected."""
        return self._robot.preflight if self._robot else []

    @property
    def emulator(self) -> Emulator:
        """The emulated controllers, to inspect or to break.

        Raises:
            NotConnectedError: Not connected.
        """
        if self._emulator is None:
            raise NotConnectedError("emulated robot: not connected. Call connect() first")
        return self._emulator

    def connect(self) -> None:
        """Set up the cell, switch the controllers on and connect the driver."""
        # A new cell with controllers in it, at ports of their own.
        self.disconnect()
        port, push_port = free_ports()
        physics = ScenePhysics(self._task_seed)
        self._emulator = Emulator(two_arms(port, push_port, home=physics.start), physics)
        self._emulator.start()
        # The real driver, pointed at them.
        settings = dataclasses.replace(
            self._settings, right_host=HOSTS["right"], left_host=HOSTS["left"], tcp_port=port, push_port=push_port
        )
        cameras = ThreadedCameras([SceneCameras(physics, self._cameras, self._size_px)]) if self._cameras else None
        robot = Rm65Robot(settings, cameras, self._limits)
        try:
            robot.connect()
        except BaseException:
            self.disconnect()
            raise
        self._physics, self._robot = physics, robot

    def _connected(self) -> Rm65Robot:
        if self._robot is None:
            raise NotConnectedError("emulated robot: not connected. Call connect() first")
        return self._robot

    def observe(self) -> RobotObservation:
        """Return the newest state and images. See `Rm65Robot.observe`."""
        return self._connected().observe()

    def send(self, target: JointVec) -> JointVec:
        """Command both arms and grippers towards a target. See `Rm65Robot.send`."""
        return self._connected().send(target)

    def set_limits(self, limits: MotionLimits) -> None:
        """Keep these limits in every command. See `Rm65Robot.set_limits`."""
        self._limits = limits
        self._connected().set_limits(limits)

    def joint_range(self) -> tuple[JointVec, JointVec]:
        """Return the ends of the allowed range. See `Rm65Robot.joint_range`."""
        return self._connected().joint_range()

    def measure(self) -> JointVec:
        """Return the newest measured position. See `Rm65Robot.measure`."""
        return self._connected().measure()

    def ages_s(self) -> dict[str, float]:
        """Return the ages of states and images. See `Rm65Robot.ages_s`."""
        return self._robot.ages_s() if self._robot else {}

    def slow_stop(self) -> None:
        """Brake both arms along their path. See `Rm65Robot.slow_stop`."""
        if self._robot is not None:
            self._robot.slow_stop()

    def stop(self) -> None:
        """Stop both arms now. See `Rm65Robot.stop`."""
        if self._robot is not None:
            self._robot.stop()

    def disconnect(self) -> None:
        """Release the driver and switch the controllers off.

        Safe to call twice.
        """
        if self._robot is not None:
            self._robot.disconnect()
            self._robot = None
        if self._emulator is not None:
            self._emulator.close()
            self._emulator = None

    def is_task_done(self) -> bool:
        """Return whether the cube is in the tray."""
        return self._physics is not None and self._physics.is_cube_in_tray()
