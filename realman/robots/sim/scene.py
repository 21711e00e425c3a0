"""The physics of the simulated cell: two arms, cube and tray.

All vectors have the units and order of `realman.spec`. `assets/scene.xml` holds the scene and `assets/rm65.xml` the
arm. Both open in any MuJoCo viewer. World frame: origin on the table top between the arms, x from the robot to the
workspace, y to the robot's left, z up.
"""

import dataclasses
from pathlib import Path

from jaxtyping import Float
import mujoco
import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.kinematics import MountedArm

SCENE_PATH = Path(__file__).parent / "assets" / "scene.xml"

ACCENT_RGB = {"right": (0.93, 0.45, 0.10), "left": (0.10, 0.42, 0.80)}
"""Color of each arm's rings, which makes the arms distinguishable."""

CUBE_HALF_M = 0.02
"""Half the edge length of the cube (scene.xml)."""

TRAY_INNER_HALF_M = np.array([0.069, 0.079])
"""Half the inner length and width of the tray (scene.xml)."""

GRIPPER_SPEED_S = 5.0
"""Fastest gripper motion, strokes per second."""

SPEED_LIMIT = np.concatenate([spec.ARM_SPEED_RAD_S, [GRIPPER_SPEED_S]] * 2)
"""Maximum speed of each of the 14 numbers: rad/s, strokes/s."""

_TRAY_RIM_M = 0.032
_AT_REST_M_S = 0.02

# Which geoms may touch: (contype, conaffinity). Links collide with the other arm and the surroundings, but not with
# their own arm, whose neighboring housings overlap by design.
_COLLISION_BITS = {"right": (2, 1 | 4), "left": (4, 1 | 2)}


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How an episode starts."""

    start: JointVec
    """Joints of both arms and grippers."""
    cube_xy_m: tuple[float, float]
    cube_yaw: float
    """Rotation of the cube about the vertical, rad."""
    cube_rgb: tuple[float, float, float]
    tray_xy_m: tuple[float, float]


class Scene:
    """One simulated cell.

    It is not thread safe. Each process or robot owns its own.
    """

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(SCENE_PATH))
        self.data = mujoco.MjData(self.model)
        self._arm_qpos = self._joint_addresses("jnt_qposadr")
        self._arm_dof = self._joint_addresses("jnt_dofadr")
        self._actuators = np.array([self.model.actuator(name).id for name in spec.DIM_NAMES])
        self._fingers = {side: [self.model.joint(f"{side}_finger_{f}").id for f in "ab"] for side in spec.SIDES}
        self.grip_travel_m = float(self.model.actuator("right_gripper").ctrlrange[1])
        """Travel of one finger from closed to open."""
        self._prepare_arms()
        self._steps_done = 0
        mujoco.mj_forward(self.model, self.data)

    def _joint_addresses(self, table: str) -> np.ndarray:
        joints = [self.model.joint(spec.DIM_NAMES[i]).id for i in spec.JOINT_DIMS]
        return getattr(self.model, table)[joints]

    def _prepare_arms(self) -> None:
        for side in spec.SIDES:
            self.model.mat(f"{side}_accent").rgba[:3] = ACCENT_RGB[side]
            for geom in range(self.model.ngeom):
                body = self.model.body(self.model.geom_bodyid[geom]).name
                if body.startswith(f"{side}_") and self.model.geom_contype[geom]:
                    self.model.geom_contype[geom], self.model.geom_conaffinity[geom] = _COLLISION_BITS[side]

    def reset(self, layout: Layout) -> None:
        """Put everything where `layout` says and at rest."""
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        model.body("tray").pos[:2] = layout.tray_xy_m
        model.mat("cube").rgba[:3] = layout.cube_rgb
        half_yaw = layout.cube_yaw / 2
        cube = model.joint("cube").qposadr[0]
        data.qpos[cube : cube + 7] = [*layout.cube_xy_m, CUBE_HALF_M, np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]
        data.qpos[self._arm_qpos] = layout.start[list(spec.JOINT_DIMS)]
        for side, dim in zip(spec.SIDES, spec.GRIPPER_DIMS, strict=True):
            data.qpos[model.jnt_qposadr[self._fingers[side]]] = layout.start[dim] * self.grip_travel_m
        self.command(layout.start)
        self._steps_done = 0
        mujoco.mj_forward(model, data)

    def command(self, target: JointVec) -> None:
        """Set the targets of all joints and grippers.

        They hold until the next call. MuJoCo clips them to the joint ranges.
        """
        ctrl = target.copy()
        ctrl[list(spec.GRIPPER_DIMS)] *= self.grip_travel_m
        self.data.ctrl[self._actuators] = ctrl

    def advance_to(self, time_s: float) -> None:
        """Run the physics to a simulated time.

        The time is absolute, so rounding to whole physics steps never accumulates.
        """
        until = round(time_s / self.model.opt.timestep)
        if until > self._steps_done:
            mujoco.mj_step(self.model, self.data, until - self._steps_done)
            self._steps_done = until
            # A step ends with new positions, but with poses, contacts and forces of the previous step.
            mujoco.mj_forward(self.model, self.data)

    def state(self) -> JointVec:
        """Return the measured positions: rad, grippers 0..1."""
        qpos = self.data.qpos
        # The fingers' end stops yield by micrometers. A real gripper does not report this.
        fingers = qpos[self._finger_table("jnt_qposadr")].clip(0, self.grip_travel_m)
        return self._layout_vector(qpos[self._arm_qpos], fingers)

    def velocity(self) -> JointVec:
        """Return the measured velocities: rad/s, grippers in strokes per second."""
        return self._layout_vector(self.data.qvel[self._arm_dof], self.data.qvel[self._finger_table("jnt_dofadr")])

    def effort(self) -> JointVec:
        """Return motor torques in N m and gripper forces in N.

        Torques include what carries the arm's weight. A closing force is negative.
        """
        effort = np.empty(spec.NUM_DIMS)
        effort[list(spec.JOINT_DIMS)] = self.data.qfrc_actuator[self._arm_dof]
        grippers = list(spec.GRIPPER_DIMS)
        effort[grippers] = self.data.actuator_force[self._actuators[grippers]]
        return effort

    def _finger_table(self, table: str) -> np.ndarray:
        return getattr(self.model, table)[[self._fingers[side] for side in spec.SIDES]]

    def _layout_vector(self, joints: np.ndarray, fingers: Float[np.ndarray, "2 2"]) -> JointVec:
        vector = np.empty(spec.NUM_DIMS)
        vector[list(spec.JOINT_DIMS)] = joints
        vector[list(spec.GRIPPER_DIMS)] = fingers.mean(axis=1) / self.grip_travel_m
        return vector

    def arm(self, side: str) -> MountedArm:
        """Return the kinematics of one arm at its place in the scene.

        The tool is the point between the fingertips.
        """
        base = _transform(self.data.body(f"{side}_base").xpos, self.data.body(f"{side}_base").xmat)
        tool = np.eye(4)
        tool[:3, 3] = self.model.site(f"{side}_grasp").pos
        return MountedArm(base, tool)

    def cube_position(self) -> Float[np.ndarray, " 3"]:
        """Return the center of the cube, m."""
        return self.data.body("cube").xpos.copy()

    def is_cube_in_tray(self) -> bool:
        """Return whether the cube rests in the tray, untouched by any finger."""
        offset = np.abs(self.cube_position() - self.model.body("tray").pos)
        inside = bool((offset[:2] < TRAY_INNER_HALF_M).all() and offset[2] < _TRAY_RIM_M + CUBE_HALF_M)
        cube_dof = self.model.joint("cube").dofadr[0]
        at_rest = float(np.abs(self.data.qvel[cube_dof : cube_dof + 3]).max()) < _AT_REST_M_S
        return inside and at_rest and not self._is_cube_held()

    def _is_cube_held(self) -> bool:
        cube = self.model.geom("cube").id
        arm_bits = sum(bits[0] for bits in _COLLISION_BITS.values())
        touching = [pair for pair in self.data.contact.geom if cube in pair]
        return any(self.model.geom_contype[geom] & arm_bits for pair in touching for geom in pair)


def camera_in_model(camera: str) -> str:
    """Return the name of a camera in the MuJoCo model.

    An attached arm prefixes its camera's name with its side.
    """
    return camera.removeprefix("cam_")


def _transform(position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = position
    pose[:3, :3] = rotation.reshape(3, 3)
    return pose
