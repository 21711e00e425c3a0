"""The scripted task of the simulated arms.

The right arm puts the cube into the tray while the left arm comes to steady the tray. Each arm follows a list of moves.
A move adds a minimum-jerk displacement in joint space, s(u) = 10 u^3 - 15 u^4 + 6 u^5. Moves may overlap, which rounds
the corners. The sum of smooth displacements stays smooth.
"""

import dataclasses

from jaxtyping import Float
import numpy as np
from scipy.spatial.transform import Rotation

from realman import spec
from realman.arrays import JointTraj
from realman.arrays import JointVec
from realman.kinematics import ArmVec
from realman.kinematics import MountedArm
from realman.kinematics import Transform
from realman.robots.sim.scene import CUBE_HALF_M
from realman.robots.sim.scene import SPEED_LIMIT
from realman.robots.sim.scene import Layout
from realman.robots.sim.scene import Scene

TASK = "pick up the cube and place it in the tray"

HOME_ARM = np.deg2rad([0.0, 20.0, 70.0, 0.0, 90.0, 0.0])
"""Arm bent, fingers pointing straight down 0.30 m in front of the base. It is far from every singular pose."""

MAX_SPEED_SHARE = 0.6
"""Largest share of its maximum speed that is commanded of any joint."""

_MOVE_SPEED_SHARE = 0.5
"""The same for a single move. Overlapping moves add up to more."""

_PEAK_TO_MEAN_SPEED = 15 / 8
"""Ratio of a minimum-jerk motion: s'(1/2)."""

_CUBE_X_M = (0.24, 0.36)
_CUBE_Y_M = (-0.40, -0.20)
_TRAY_XY_M = (0.25, -0.02)
_TRAY_SPREAD_M = 0.015
_HOME_SPREAD_RAD = np.deg2rad(4.0)
_TIME_SPREAD = 0.08
_REST_S = 0.25
"""Time without motion at the end, so that the arms have arrived in the last frame."""

CUBE_COLORS = ((0.82, 0.12, 0.10), (0.93, 0.72, 0.08), (0.12, 0.55, 0.20), (0.45, 0.16, 0.60))

# Fingers down, palm's camera towards the robot: the tool's axes in the world at `HOME_ARM`.
_FINGERS_DOWN = np.diag([-1.0, 1.0, -1.0])

_GRIP_CLOSED = 0.2
"""Commanded opening when holding the cube. It is less than the cube's width, so that the fingers press."""
_APPROACH_M = 0.09
_CARRY_M = 0.10


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """One displacement of one arm."""

    start_s: float
    duration_s: float
    delta: Float[np.ndarray, " 7"]
    """Six joints in rad and the gripper."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The commanded motion of both arms."""

    start: JointVec
    moves: dict[str, tuple[Move, ...]]
    """Moves of each side."""
    duration_s: float

    def targets(self, fps: float) -> JointTraj:
        """Return absolute targets, one per tick.

        Row k is where the arms should be at (k + 1) / fps.
        """
        times = np.arange(1, round(self.duration_s * fps) + 1) / fps
        targets = np.tile(self.start, (len(times), 1))
        for side, moves in self.moves.items():
            for move in moves:
                share = minimum_jerk((times - move.start_s) / move.duration_s)
                targets[:, spec.ARM_SLICES[side]] += share[:, None] * move.delta
        return targets

    def stretched(self, factor: float) -> "Plan":
        """Return the same path, `factor` times slower."""
        moves = {
            side: tuple(Move(m.start_s * factor, m.duration_s * factor, m.delta) for m in moves)
            for side, moves in self.moves.items()
        }
        return Plan(self.start, moves, self.duration_s * factor)


def minimum_jerk(u: np.ndarray) -> np.ndarray:
    """Return the share of a displacement done at time `u` in 0..1.

    It is constant outside that range.
    """
    u = u.clip(0, 1)
    return u**3 * (10 + u * (6 * u - 15))


def draw_layout(rng: np.random.Generator) -> Layout:
    """Draw the cube's pose and color, the tray and the arms' start."""
    start = np.concatenate([HOME_ARM, [0.0], HOME_ARM, [0.0]])
    start[list(spec.JOINT_DIMS)] += rng.uniform(-_HOME_SPREAD_RAD, _HOME_SPREAD_RAD, len(spec.JOINT_DIMS))
    start[list(spec.GRIPPER_DIMS)] = rng.uniform(0.88, 0.98, len(spec.GRIPPER_DIMS))
    tray = np.asarray(_TRAY_XY_M) + rng.uniform(-_TRAY_SPREAD_M, _TRAY_SPREAD_M, 2)
    return Layout(
        start=start,
        cube_xy_m=(float(rng.uniform(*_CUBE_X_M)), float(rng.uniform(*_CUBE_Y_M))),
        # The cube looks the same after a quarter turn, so an eighth to each side covers every distinct yaw.
        cube_yaw=float(rng.uniform(-np.pi / 4, np.pi / 4)),
        cube_rgb=CUBE_COLORS[int(rng.integers(len(CUBE_COLORS)))],
        tray_xy_m=(float(tray[0]), float(tray[1])),
    )


class _ArmScript:
    """Collects the moves of one arm, each from the previous end."""

    def __init__(self, arm: MountedArm, start: Float[np.ndarray, " 7"], rng: np.random.Generator) -> None:
        self._arm = arm
        self._start = start
        self._now = start
        self._rng = rng
        self.time_s = 0.0
        self.moves: list[Move] = []

    def wait(self, seconds: float) -> None:
        self.time_s += self._vary(seconds)

    def wait_until(self, time_s: float) -> None:
        self.time_s = max(self.time_s, time_s)

    def reach(self, pose: Transform, seconds: float, *, grip: float | None = None, blend: float = 0.0) -> None:
        """Bring the tool to a pose.

        The last `blend` share of the time overlaps the next move.
        """
        joints = self._arm.inverse(pose, self._now[:6])
        self._go(joints, self._now[6] if grip is None else grip, seconds, blend)

    def grip(self, opening: float, seconds: float) -> None:
        self._go(self._now[:6], opening, seconds, 0.0)

    def home(self, seconds: float) -> None:
        self._go(self._start[:6], self._start[6], seconds, 0.0)

    def _go(self, joints: ArmVec, grip: float, seconds: float, blend: float) -> None:
        target = np.concatenate([joints, [grip]])
        slowest = _MOVE_SPEED_SHARE * SPEED_LIMIT[:7]
        duration = max(self._vary(seconds), float((_PEAK_TO_MEAN_SPEED * np.abs(target - self._now) / slowest).max()))
        self.moves.append(Move(self.time_s, duration, target - self._now))
        self.time_s += duration * (1 - blend)
        self._now = target

    def _vary(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - _TIME_SPREAD, 1 + _TIME_SPREAD)


def draw_plan(scene: Scene, layout: Layout, rng: np.random.Generator) -> Plan:
    """Plan the motion of both arms for a layout.

    Timing and tilts vary with `rng`. Every joint stays within `MAX_SPEED_SHARE` of its speed.

    Raises:
        ValueError: A pose is out of an arm's reach. The ranges of `draw_layout` exclude this.
    """
    right = _ArmScript(scene.arm("right"), layout.start[spec.ARM_SLICES["right"]], rng)
    left = _ArmScript(scene.arm("left"), layout.start[spec.ARM_SLICES["left"]], rng)
    released_s = _script_right(right, layout, rng)
    _script_left(left, layout, released_s, rng)
    duration = max(right.time_s, left.time_s) + _REST_S
    plan = Plan(layout.start, {"right": tuple(right.moves), "left": tuple(left.moves)}, duration)
    return plan.stretched(max(1.0, _speed_share(plan) / MAX_SPEED_SHARE))


def _script_right(arm: _ArmScript, layout: Layout, rng: np.random.Generator) -> float:
    """Script pick and place, and return the time of release, s."""
    cube = np.array([*layout.cube_xy_m, CUBE_HALF_M])
    tray = np.array([*layout.tray_xy_m, CUBE_HALF_M + 0.014])
    up = np.array([0.0, 0.0, 1.0])
    tilt = rng.uniform(0.10, 0.25)
    place_yaw = layout.cube_yaw / 2 + rng.uniform(-0.2, 0.2)
    arm.wait(0.1)
    arm.reach(tool_pose(cube + _APPROACH_M * up, layout.cube_yaw, roll=-tilt / 2), 0.9, grip=0.95, blend=0.2)
    arm.reach(tool_pose(cube, layout.cube_yaw), 0.5)
    arm.grip(_GRIP_CLOSED, 0.55)
    arm.reach(tool_pose(cube + _CARRY_M * up, layout.cube_yaw, roll=tilt / 2), 0.5, blend=0.3)
    arm.reach(tool_pose(tray + _CARRY_M * up, place_yaw, roll=tilt), 0.8, blend=0.25)
    arm.reach(tool_pose(tray, place_yaw), 0.5)
    arm.grip(0.8, 0.4)
    released_s = arm.time_s
    arm.reach(tool_pose(tray + _APPROACH_M * up, place_yaw, roll=tilt / 2), 0.4, blend=0.3)
    arm.home(0.8)
    return released_s


def _script_left(arm: _ArmScript, layout: Layout, released_s: float, rng: np.random.Generator) -> None:
    """Script the left arm, which steadies the tray.

    It comes to the tray's left edge with half closed fingers, stays until the cube is in the tray, and goes home.
    """
    edge = np.array([*layout.tray_xy_m, 0.0]) + np.array([-0.02, 0.115, 0.045])
    away = np.array([0.0, 0.06, 0.07])
    yaw = rng.uniform(-1.0, -0.7)
    tilt = rng.uniform(0.15, 0.3)
    arm.wait(0.8)
    arm.reach(tool_pose(edge + away, yaw, roll=-tilt / 2), 1.2, grip=0.5, blend=0.25)
    arm.reach(tool_pose(edge, yaw, roll=-tilt), 0.7, grip=0.3)
    arm.wait_until(released_s)
    arm.reach(tool_pose(edge + away, yaw, roll=-tilt / 2), 0.5, grip=0.6, blend=0.25)
    arm.home(0.8)


def tool_pose(position: Float[np.ndarray, " 3"], yaw: float, *, roll: float = 0.0) -> Transform:
    """Return a pose of the point between the fingertips, fingers down.

    Args:
        position: Position in the world, m.
        yaw: Rotation about the vertical, rad. At 0 the fingers open along the world's y.
        roll: Lean of the tool about the world's x, rad. A positive roll moves the palm towards the robot's right.
    """
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("XZ", [roll, yaw]).as_matrix() @ _FINGERS_DOWN
    pose[:3, 3] = position
    return pose


def _speed_share(plan: Plan, sample_hz: float = 200.0) -> float:
    """Return the largest commanded share of any joint's or gripper's speed limit."""
    speed = np.abs(np.diff(plan.targets(sample_hz), axis=0)) * sample_hz
    return float((speed / SPEED_LIMIT).max())
