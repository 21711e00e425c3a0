"""Forward and inverse kinematics of one RM65-B in its own base frame.

This module imports only numpy. It knows nothing of speed limits and collisions.

Formula: modified (Craig) Denavit-Hartenberg, T_i = RotX(alpha_i-1) TransX(a_i-1) RotZ(theta_i + offset_i) TransZ(d_i),
with the vendor's table for the RM65-B. At q = 0 the arm points straight up and its flange is at (0, 0, 0.8505) m.
"""

import dataclasses

from jaxtyping import Float
import numpy as np

from realman import spec

ArmVec = Float[np.ndarray, " 6"]
"""Joints of one arm, rad, from base to flange."""

Transform = Float[np.ndarray, "4 4"]
"""Homogeneous transform, m."""

# Columns: a_i-1 m, alpha_i-1 rad, d_i m, offset_i rad. Source: the vendor's table, checked against the SDK's own
# algorithm library.
_DH = np.array(
    [
        [0.0, 0.0, 0.2405, 0.0],
        [0.0, np.pi / 2, 0.0, np.pi / 2],
        [0.256, 0.0, 0.0, np.pi / 2],
        [0.0, np.pi / 2, 0.210, 0.0],
        [0.0, -np.pi / 2, 0.0, 0.0],
        [0.0, np.pi / 2, 0.144, 0.0],
    ]
)

_MAX_ITERATIONS = 200
_DAMPING = 1e-3
"""Keeps a step finite near a singular pose. It is small enough not to slow convergence elsewhere."""
_MAX_STEP_RAD = 0.3
_POSITION_TOLERANCE_M = 1e-6
_ROTATION_TOLERANCE_RAD = 1e-5


def joint_frames(q: ArmVec) -> Float[np.ndarray, "7 4 4"]:
    """Return the frames of base and six links in the base frame.

    The last frame is the flange.
    """
    frames = [np.eye(4)]
    for (a, alpha, d, offset), theta in zip(_DH, q + _DH[:, 3], strict=True):
        del offset
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(theta), np.sin(theta)
        link = np.array(
            [
                [ct, -st, 0.0, a],
                [st * ca, ct * ca, -sa, -d * sa],
                [st * sa, ct * sa, ca, d * ca],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )
        frames.append(frames[-1] @ link)
    return np.stack(frames)


def forward(q: ArmVec) -> Transform:
    """Return the pose of the flange in the base frame."""
    return joint_frames(q)[-1]


def rotation_vector(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 3"]:
    """Return axis times angle of a rotation, rad.

    The rotation must be by less than half a turn.
    """
    skew = (
        np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
        / 2
    )
    sine, cosine = np.linalg.norm(skew), (np.trace(rotation) - 1) / 2
    return skew if sine < 1e-12 else skew * (np.arctan2(sine, cosine) / sine)


def _error_and_jacobian(
    q: ArmVec, target: Transform, tool: Transform
) -> tuple[Float[np.ndarray, " 6"], Float[np.ndarray, "6 6"]]:
    frames = joint_frames(q)
    tip = frames[-1] @ tool
    error = np.concatenate([target[:3, 3] - tip[:3, 3], rotation_vector(target[:3, :3] @ tip[:3, :3].T)])
    axes = frames[1:, :3, 2]
    linear = np.cross(axes, tip[:3, 3] - frames[1:, :3, 3])
    return error, np.concatenate([linear.T, axes.T])


def inverse(target: Transform, seed: ArmVec, tool: Transform | None = None) -> ArmVec:
    """Return joints that bring the tool to a pose.

    The search is damped least squares from `seed`, so it finds the solution near the seed.

    Args:
        target: Wanted pose of the tool in the base frame.
        seed: Start of the search, rad.
        tool: Pose of the tool in the flange frame. None means the flange itself.

    Raises:
        ValueError: The pose is not reached within the joint limits.
    """
    tool = np.eye(4) if tool is None else tool
    q = seed.copy()
    for _ in range(_MAX_ITERATIONS):
        error, jacobian = _error_and_jacobian(q, target, tool)
        if np.linalg.norm(error[:3]) < _POSITION_TOLERANCE_M and np.linalg.norm(error[3:]) < _ROTATION_TOLERANCE_RAD:
            return q
        step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6), error)
        step *= min(1.0, _MAX_STEP_RAD / max(float(np.abs(step).max()), 1e-9))
        q = np.clip(q + step, spec.ARM_LOWER_RAD, spec.ARM_UPPER_RAD)
    raise ValueError(
        f"inverse kinematics: {np.round(target[:3, 3], 4)} m is out of reach, {np.round(error, 4)} remains as error"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class MountedArm:
    """An arm at its place in the world, with a tool."""

    base: Transform
    """Pose of the arm's base in the world."""
    tool: Transform
    """Pose of the tool, which is the point between the fingertips, in the flange frame."""

    def forward(self, q: ArmVec) -> Transform:
        """Return the pose of the tool in the world."""
        return self.base @ forward(q) @ self.tool

    def inverse(self, target: Transform, seed: ArmVec) -> ArmVec:
        """Return joints that bring the tool to a pose in the world.

        See `inverse`.
        """
        return inverse(np.linalg.inv(self.base) @ target, seed, self.tool)
