"""Ranges of each robot's numbers: what can be, and what training had.

A state in other units than the robot's (degrees, gripper steps) is answered with a motion like any other. These limits are
wide enough for every real robot, so what is beyond them cannot be right.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from openpi import transforms as _transforms
from openpi.policies import aloha_policy
from openpi.policies import droid_policy
from openpi.policies import realman_policy
from openpi.serving.observation_contract import RobotLimits
from openpi.serving.value_range import ValueRange
from openpi.shared.normalize import NormStats

# Beyond the range of a joint or gripper by sensor noise, calibration, or a finger that yields.
_JOINT_MARGIN_RAD = 0.2
_GRIPPER_MARGIN = 0.5

# No joint of a Franka or ViperX arm turns more than once in either direction.
_FULL_TURN_RAD = 2 * np.pi

# A state this many widths (from the 1 % to the 99 % quantile) beyond training is far outside it.
_NUM_TRAINED_WIDTHS = 3.0

# A joint that stood still in training, or a gripper that never moved, has no width. Smaller differences are ignored.
_MIN_WIDTH = 0.1

# Half of the width that normal numbers have between these quantiles, in standard deviations.
_QUANTILE_STDS = 2.33


def describe(
    data_transforms: _transforms.Group,
    *,
    norm_stats: Mapping[str, NormStats] | None = None,
    cameras: Sequence[str] = (),
) -> RobotLimits:
    """Return the limits of the robot to which these transforms belong.

    They are empty for an unknown robot.

    Args:
        data_transforms: Transforms of the robot.
        norm_stats: Statistics of the training data in the model's layout, if there was a training.
        cameras: Cameras that the model was trained with.
    """
    for transform in data_transforms.inputs:
        if possible := _POSSIBLE.get(type(transform)):
            stats = (norm_stats or {}).get("state")
            trained = _trained(transform, stats) if stats is not None else {}
            return RobotLimits(possible(transform), trained, tuple(cameras))
    return RobotLimits()


def _realman_range(lower: np.ndarray, upper: np.ndarray, arm_order: realman_policy.ArmOrder) -> ValueRange:
    """Return a state's range. The bounds have the left arm first."""
    names = realman_policy.DIM_NAMES
    half = realman_policy.NUM_DIMS // 2
    if arm_order == "left_right":
        return ValueRange(lower, upper, names[half:] + names[:half])
    order = np.r_[half : 2 * half, :half]
    return ValueRange(lower[order], upper[order], names)


def _realman(transform: Any) -> dict[str, ValueRange]:
    # Both arms have the same ranges, so their order does not matter here.
    joints = np.array(realman_policy.DELTA_MASK)
    margin = np.where(joints, _JOINT_MARGIN_RAD, _GRIPPER_MARGIN)
    lower, upper = realman_policy.STATE_LOWER - margin, realman_policy.STATE_UPPER + margin
    return {"state": _realman_range(lower, upper, transform.arm_order)}


def _aloha(_: Any) -> dict[str, ValueRange]:
    names = [f"{side}_{part}" for side in ("left", "right") for part in (*(f"joint_{i}" for i in range(6)), "gripper")]
    return {"state": _joints_and_grippers(names)}


def _droid(_: Any) -> dict[str, ValueRange]:
    return {
        droid_policy.JOINTS: _joints_and_grippers([f"joint_{i}" for i in range(7)]),
        droid_policy.GRIPPER: _joints_and_grippers(["gripper"]),
    }


_POSSIBLE: dict[type, Callable[[Any], dict[str, ValueRange]]] = {
    realman_policy.RealmanInputs: _realman,
    aloha_policy.AlohaInputs: _aloha,
    droid_policy.DroidInputs: _droid,
}


def _joints_and_grippers(names: Sequence[str]) -> ValueRange:
    is_gripper = np.array(["gripper" in name for name in names])
    # Other drivers count the gripper from -1 to 1, or in rad.
    upper = np.where(is_gripper, 2.0, _FULL_TURN_RAD)
    return ValueRange(-upper, upper, names)


def _trained(transform: Any, stats: NormStats) -> dict[str, ValueRange]:
    """Return the trained range of a state whose layout is known.

    Other robots' transforms change more than the order of the numbers.
    """
    size = realman_policy.NUM_DIMS
    if not isinstance(transform, realman_policy.RealmanInputs) or stats.mean.size < size:
        return {}
    if stats.q01 is None or stats.q99 is None:
        low, high = stats.mean - _QUANTILE_STDS * stats.std, stats.mean + _QUANTILE_STDS * stats.std
    else:
        low, high = stats.q01, stats.q99
    low, high = low[:size], high[:size]
    margin = _NUM_TRAINED_WIDTHS * np.maximum(high - low, _MIN_WIDTH)
    return {"state": _realman_range(low - margin, high + margin, transform.arm_order)}
