"""The robot's numbers: order, limits, cameras and rates of two RM65 arms.

Every file, message and plot uses this layout: right arm first, joints in rad, grippers 0..1 with 1 = open.
This module imports only numpy.
"""

import numpy as np

SIDES = ("right", "left")
"""Order of the arms in every 14-vector."""

ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
"""Joints of one arm, from base to flange."""

DIM_NAMES = tuple(f"{side}_{part}" for side in SIDES for part in (*ARM_JOINTS, "gripper"))
"""Names of the 14 numbers in LeRobot datasets of this robot."""

NUM_DIMS = len(DIM_NAMES)
ARM_SLICES = {"right": slice(0, 7), "left": slice(7, 14)}
GRIPPER_DIMS = (6, 13)
JOINT_DIMS = tuple(i for i in range(NUM_DIMS) if i not in GRIPPER_DIMS)

CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
DEFAULT_IMAGE_HEIGHT_PX = 480
DEFAULT_IMAGE_WIDTH_PX = 640

DEFAULT_FPS = 50
"""Default of the rate flags, Hz. The real rate always comes from the recording or a flag."""

ACTION_CHUNK = 25
"""Steps of a predicted chunk that the client executes before the next chunk: half a second at 50 Hz."""

# RM65-B, base to flange: position range and maximum speed of each joint. Source: the vendor's parameter page. The SDK's
# algorithm library 1.6.0 returns the same numbers.
_ARM_LIMIT_DEG = np.array([178.0, 130.0, 135.0, 178.0, 128.0, 360.0])
_ARM_SPEED_DEG_S = np.array([180.0, 180.0, 225.0, 225.0, 225.0, 225.0])

ARM_LOWER_RAD = -np.deg2rad(_ARM_LIMIT_DEG)
ARM_UPPER_RAD = np.deg2rad(_ARM_LIMIT_DEG)
ARM_SPEED_RAD_S = np.deg2rad(_ARM_SPEED_DEG_S)

LOWER = np.concatenate([ARM_LOWER_RAD, [0.0], ARM_LOWER_RAD, [0.0]])
UPPER = np.concatenate([ARM_UPPER_RAD, [1.0], ARM_UPPER_RAD, [1.0]])
"""Range of each of the 14 numbers: rad for joints, 0..1 for grippers."""

# Dataset keys (LeRobot) and the keys of a policy request.
STATE_KEY = "observation.state"
ACTION_KEY = "action"
VELOCITY_KEY = "observation.velocity"
EFFORT_KEY = "observation.effort"
IMAGE_KEY_PREFIX = "observation.images."


def image_key(camera: str) -> str:
    """Return the dataset key of a camera, for example `observation.images.cam_high`."""
    return IMAGE_KEY_PREFIX + camera
