"""The simulated cell as a `Robot`.

Simulated time advances by one tick with each `send`, however long the call takes.
"""

from collections.abc import Sequence
import time

import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.errors import NotConnectedError
from realman.errors import RejectedError
from realman.robots.robot import RobotObservation
from realman.robots.sim import task
from realman.robots.sim.render import Renderer
from realman.robots.sim.render import open_renderer
from realman.robots.sim.scene import SPEED_LIMIT
from realman.robots.sim.scene import Scene


class SimRobot:
    """Two RM65 arms, a cube and a tray.

    Use it from one thread: its cameras hold a graphics context.
    """

    def __init__(
        self,
        task_seed: int = 0,
        cameras: Sequence[str] = spec.CAMERAS,
        *,
        fps: float = spec.DEFAULT_FPS,
        height_px: int = spec.DEFAULT_IMAGE_HEIGHT_PX,
        width_px: int = spec.DEFAULT_IMAGE_WIDTH_PX,
    ) -> None:
        """Describe the robot. `connect` opens it.

        Args:
            task_seed: Seed of the poses of cube, tray and arms.
            cameras: Cameras to draw. An empty sequence is fastest.
            fps: Ticks per second of simulated time.
            height_px: Rows of an image.
            width_px: Columns of an image.

        Raises:
            ValueError: A camera is unknown.
        """
        unknown = set(cameras) - set(spec.CAMERAS)
        if unknown:
            raise ValueError(f"cameras: {sorted(unknown)} unknown, expected some of {spec.CAMERAS}")
        self._task_seed = task_seed
        self._cameras = tuple(cameras)
        self._fps = float(fps)
        self._size = (height_px, width_px)
        self._max_step = SPEED_LIMIT / fps
        self._scene: Scene | None = None
        self._renderer: Renderer | None = None
        self._target = np.zeros(spec.NUM_DIMS)
        self._num_ticks = 0
        self._is_stopped = False

    @property
    def fps(self) -> float:
        """Ticks per second of simulated time."""
        return self._fps

    @property
    def sim_time_s(self) -> float:
        """Simulated time since `connect`, s."""
        return self._num_ticks / self._fps

    def connect(self) -> None:
        """Set up the cell as the seed draws it.

        This also ends a stop.
        """
        self.disconnect()
        scene = Scene()
        layout = task.draw_layout(np.random.default_rng(self._task_seed))
        scene.reset(layout)
        if self._cameras:
            self._renderer = open_renderer(scene.model, *self._size)
        self._scene = scene
        self._target = layout.start.copy()
        self._num_ticks = 0
        self._is_stopped = False

    def observe(self) -> RobotObservation:
        """Return the measured state and freshly drawn camera images.

        Raises:
            NotConnectedError: Not connected.
        """
        scene = self._connected()
        images = {camera: self._renderer.render(scene.data, camera) for camera in self._cameras if self._renderer}
        return RobotObservation(state=scene.state(), images=images, time_s=time.monotonic())

    def measure(self) -> JointVec:
        """Return the measured state without drawing images.

        Raises:
            NotConnectedError: Not connected.
        """
        return self._connected().state()

    def ages_s(self) -> dict[str, float]:
        """Return no ages: nothing grows old in simulated time."""
        return {}

    def send(self, target: JointVec) -> JointVec:
        """Command a target and run one tick of physics.

        Args:
            target: Absolute positions, rad and 0..1. It is not changed.

        Returns:
            The target after clipping to the joint ranges and to one tick of motion at maximum speed.

        Raises:
            NotConnectedError: Not connected.
            RejectedError: The target is not finite, or the robot was stopped.
        """
        scene = self._connected()
        if self._is_stopped:
            raise RejectedError("simulated robot: stopped, so no motion is accepted. Call connect() first")
        if not np.isfinite(target).all():
            names = [name for name, value in zip(spec.DIM_NAMES, target, strict=True) if not np.isfinite(value)]
            raise RejectedError(f"simulated robot: target is not finite at {', '.join(names)}, so nothing was sent")
        reachable = self._target + np.clip(target - self._target, -self._max_step, self._max_step)
        self._target = np.clip(reachable, spec.LOWER, spec.UPPER)
        scene.command(self._target)
        self._num_ticks += 1
        scene.advance_to(self.sim_time_s)
        return self._target.copy()

    def stop(self) -> None:
        """Hold the measured position and refuse targets until the next `connect`.

        Does nothing when not connected.
        """
        if self._scene is not None:
            self._target = np.clip(self._scene.state(), spec.LOWER, spec.UPPER)
            self._scene.command(self._target)
            self._is_stopped = True

    def disconnect(self) -> None:
        """Release the cameras. Safe to call twice."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = self._scene = None

    def is_task_done(self) -> bool:
        """Return whether the cube is in the tray.

        Raises:
            NotConnectedError: Not connected.
        """
        return self._connected().is_cube_in_tray()

    def _connected(self) -> Scene:
        if self._scene is None:
            raise NotConnectedError("simulated robot: not connected. Call connect() first")
        return self._scene
