"""The MuJoCo cell as the emulator's world, and its cameras.

The images show what the emulated arms do.
"""

from collections.abc import Sequence
import copy
import dataclasses
import threading
from typing import Any

import numpy as np

from realman import spec
from realman.arrays import Image
from realman.arrays import JointVec
from realman.robots.emulator.physics import GRIPPER_STROKE_S
from realman.robots.emulator.physics import ArmPosition
from realman.robots.emulator.physics import ArmTarget
from realman.robots.sim import task
from realman.robots.sim.render import Renderer
from realman.robots.sim.render import open_renderer
from realman.robots.sim.scene import Scene

_GRIPPERS = dict(zip(spec.SIDES, spec.GRIPPER_DIMS, strict=True))


def _joints(side: str) -> slice:
    start = spec.ARM_SLICES[side].start
    return slice(start, start + len(spec.ARM_JOINTS))


class ScenePhysics:
    """Implements `physics.Physics` on `realman.robots.sim.scene.Scene`.

    One thread steps it. Any thread may take a snapshot.
    """

    def __init__(self, task_seed: int = 0) -> None:
        """Set up the cell as the seed draws it."""
        self.scene = Scene()
        self._layout = task.draw_layout(np.random.default_rng(task_seed))
        self._lock = threading.Lock()
        self._time_s = 0.0
        self._reset(self._layout.start)

    @property
    def start(self) -> JointVec:
        """Position of the arms and grippers at the start."""
        return self._layout.start.copy()

    @property
    def time_s(self) -> float:
        """Simulated time since the cell was set up, s."""
        return self._time_s

    def _reset(self, start: JointVec) -> None:
        self._layout = dataclasses.replace(self._layout, start=start)
        self.scene.reset(self._layout)
        self._command = start.copy()
        self._target = start.copy()
        self._gripper_rate = dict.fromkeys(spec.SIDES, 1.0 / GRIPPER_STROKE_S)

    def place(self, side: str, position: ArmPosition) -> None:
        """Put an arm at its power-on position and reset the cell."""
        start = self.start
        start[_joints(side)], start[_GRIPPERS[side]] = position
        with self._lock:
            self._reset(start)

    def set_target(self, side: str, target: ArmTarget) -> None:
        """Command one arm. The target holds until the next call."""
        self._target[_joints(side)] = target.joints
        self._target[_GRIPPERS[side]] = target.gripper
        self._gripper_rate[side] = target.gripper_speed / GRIPPER_STROKE_S

    def position(self, side: str) -> ArmPosition:
        """Return the measured position of one arm."""
        state = self.scene.state()
        return ArmPosition(state[_joints(side)], float(state[_GRIPPERS[side]]))

    def advance(self, dt_s: float) -> None:
        """Run the physics.

        A gripper's command moves at the gripper's speed, as its own controller would do it.
        """
        previous, self._command = self._command, self._target.copy()
        for side, dim in _GRIPPERS.items():
            step = self._gripper_rate[side] * dt_s
            self._command[dim] = previous[dim] + np.clip(self._target[dim] - previous[dim], -step, step)
        self._time_s += dt_s
        with self._lock:
            self.scene.command(self._command)
            self.scene.advance_to(self._time_s)

    def is_cube_in_tray(self) -> bool:
        """Return whether the cube is in the tray."""
        # Never in the middle of a step, because the table of contacts changes while the world is stepped.
        with self._lock:
            return self.scene.is_cube_in_tray()

    def snapshot(self) -> Any:
        """Return a copy of the simulator's data, for drawing."""
        with self._lock:
            return copy.copy(self.scene.data)


class SceneCameras:
    """Implements `realman.robots.cameras.threads.CameraSource`.

    It draws all cameras of the cell from one snapshot.
    """

    def __init__(
        self,
        physics: ScenePhysics,
        cameras: Sequence[str] = spec.CAMERAS,
        size_px: tuple[int, int] = (spec.DEFAULT_IMAGE_HEIGHT_PX, spec.DEFAULT_IMAGE_WIDTH_PX),
    ) -> None:
        self.names = tuple(cameras)
        self._physics = physics
        self._size_px = size_px
        self._renderer: Renderer | None = None

    def open(self) -> None:
        """Open a renderer in this thread."""
        self._renderer = open_renderer(self._physics.scene.model, *self._size_px)

    def grab(self) -> dict[str, Image]:
        """Draw every camera."""
        assert self._renderer is not None
        data = self._physics.snapshot()
        return {name: self._renderer.render(data, name) for name in self.names}

    def close(self) -> None:
        """Close the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
