"""Convert between an ALOHA robot and the model.

The robot has two arms, left first, and up to four cameras. The released base models were trained on ALOHA data with
another convention than the robot's own software: the signs of four joints differ, and the gripper is a joint angle.
`adapt_to_pi` converts. The numbers below are part of those models.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import numpy as np

from openpi import transforms
from openpi.policies import images as _images

NUM_DIMS = 14
_GRIPPERS = (6, 13)

_JOINT_SIGNS = np.array([1, -1, -1, 1, 1, 1, 1] * 2, dtype=np.float32)

# Linear travel of the gripper's fingers, m, and the two links of its crank, m (formula: kinematics of the gripper).
_LINEAR_RANGE = (0.01844, 0.05800)
_CRANK_ARM, _CRANK_ROD = 0.022, 0.036

# Joint angle of the gripper, rad, closed and open: as the base models count it, and as the robot is commanded.
_PI_RANGE = (0.5476, 1.6296)
_ROBOT_RANGE = (-0.6213, 1.4910)


def make_aloha_example() -> dict[str, Any]:
    """Return a random request as a client sends it."""
    rng = np.random.default_rng()
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    return {
        "state": np.ones(NUM_DIMS),
        "images": {camera: rng.integers(0, 256, (3, 224, 224), dtype=np.uint8) for camera in cameras},
        "prompt": "do something",
    }


def _rescale(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] to [0, 1]."""
    return (x - low) / (high - low)


def _gripper_state_to_pi(gripper: np.ndarray) -> np.ndarray:
    """Convert an opening 0..1 of linear travel to the models' joint angle."""
    low, high = _LINEAR_RANGE
    travel = low + gripper * (high - low)
    sine = (_CRANK_ARM**2 + travel**2 - _CRANK_ROD**2) / (2 * _CRANK_ARM * travel)
    return _rescale(np.arcsin(np.clip(sine, -1.0, 1.0)), *_PI_RANGE)


def _gripper_action_to_robot(gripper: np.ndarray) -> np.ndarray:
    """Convert a predicted gripper angle to the robot's command 0..1."""
    # Uses only the offset of the model's range, not its width, because the base models were trained with this quirk.
    return _rescale(gripper + _PI_RANGE[0], *_ROBOT_RANGE)


def _gripper_action_to_pi(gripper: np.ndarray) -> np.ndarray:
    """Invert `_gripper_action_to_robot`."""
    low, high = _ROBOT_RANGE
    return low + gripper * (high - low) - _PI_RANGE[0]


def _adapt(x: np.ndarray, convert_gripper: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Flip the signs of joints and convert the grippers of [..., 14].

    The signs are the same in both directions.
    """
    adapted = _JOINT_SIGNS * x.astype(np.result_type(x, np.float32))
    adapted[..., _GRIPPERS] = convert_gripper(adapted[..., _GRIPPERS])
    return adapted


def _check_width(name: str, value: Any) -> np.ndarray:
    x = np.asarray(value)
    if x.ndim == 0 or x.shape[-1] != NUM_DIMS:
        raise ValueError(f"{name}: found shape {list(x.shape)}, expected {NUM_DIMS} numbers in the last axis")
    return x


@dataclasses.dataclass(frozen=True)
class AlohaInputs(transforms.DataTransformFn):
    """Convert a sample of the robot to the model's inputs.

    A sample has `state` [14], `images` {camera: [3, h, w] or [h, w, 3]} with at least `cam_high`, and optionally `actions`
    [ah, 14] and `prompt`. `cam_low` may be present and is not used.
    """

    # Whether to convert joints and grippers to the convention of the base models.
    adapt_to_pi: bool = True

    EXPECTED_CAMERAS: ClassVar[tuple[str, ...]] = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")

    def __call__(self, data: dict) -> dict:
        """Return `state`, `image`, `image_mask`, and `actions` and `prompt` if present."""
        _images.require_keys(data, "state", "images")
        cameras = data["images"]
        if set(cameras) - set(self.EXPECTED_CAMERAS):
            raise ValueError(f"images: expected some of {self.EXPECTED_CAMERAS}, found {tuple(cameras)}")
        _images.require_keys(cameras, "cam_high")

        # A missing wrist camera is a black image that the model does not see.
        base = _images.parse_image("cam_high", cameras["cam_high"])
        image: dict[str, np.ndarray] = {"base_0_rgb": base}
        image_mask: dict[str, np.bool_] = {"base_0_rgb": np.True_}
        for slot, camera in (("left_wrist_0_rgb", "cam_left_wrist"), ("right_wrist_0_rgb", "cam_right_wrist")):
            is_seen = camera in cameras
            image[slot] = _images.parse_image(camera, cameras[camera]) if is_seen else np.zeros_like(base)
            image_mask[slot] = np.bool_(is_seen)

        # State and actions in the convention of the base models.
        state = _check_width("state", data["state"])
        inputs = {
            "image": image,
            "image_mask": image_mask,
            "state": _adapt(state, _gripper_state_to_pi) if self.adapt_to_pi else state,
        }
        if "actions" in data:
            actions = _check_width("actions", data["actions"])
            inputs["actions"] = _adapt(actions, _gripper_action_to_pi) if self.adapt_to_pi else actions
        if "prompt" in data:
            inputs["prompt"] = data["prompt"]
        return inputs


@dataclasses.dataclass(frozen=True)
class AlohaOutputs(transforms.DataTransformFn):
    """Convert the model's actions [..., d] to the robot's [..., 14].

    d is at least 14.
    """

    # Whether the model uses the convention of the base models.
    adapt_to_pi: bool = True

    def __call__(self, data: dict) -> dict:
        """Return only `actions`."""
        actions = np.asarray(data["actions"])[..., :NUM_DIMS]
        return {"actions": _adapt(actions, _gripper_action_to_robot) if self.adapt_to_pi else actions}
