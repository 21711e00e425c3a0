"""Convert between a DROID robot and the model.

The robot has one Franka arm and two cameras.
"""

import dataclasses
from typing import Any

import numpy as np

from openpi import transforms
from openpi.models import model as _model
from openpi.policies import images as _images

_NUM_ACTION_DIMS = 8

_EXTERIOR = "observation/exterior_image_1_left"
_WRIST = "observation/wrist_image_left"
JOINTS = "observation/joint_position"
GRIPPER = "observation/gripper_position"


def make_droid_example() -> dict[str, Any]:
    """Return a random request as a client sends it."""
    rng = np.random.default_rng()
    return {
        _EXTERIOR: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        _WRIST: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        JOINTS: rng.random(7),
        GRIPPER: rng.random(1),
        "prompt": "do something",
    }


@dataclasses.dataclass(frozen=True)
class DroidInputs(transforms.DataTransformFn):
    """Convert a sample of the robot to the model's inputs.

    A sample has an exterior and a wrist image ([h, w, 3] or [3, h, w]), joint positions [7], a gripper position (scalar or
    [1]), and optionally `actions` [ah, 8] and `prompt` (text or UTF-8 bytes).
    """

    # Determines the names of the image slots, and whether the slot without a camera counts as seen.
    model_type: _model.ModelType

    def __call__(self, data: dict) -> dict:
        """Return `state`, `image`, `image_mask`, and `actions` and `prompt` if present."""
        # Images, with a black one in the slot without a camera.
        _images.require_keys(data, _EXTERIOR, _WRIST, JOINTS, GRIPPER)
        exterior = _images.parse_image(_EXTERIOR, data[_EXTERIOR])
        wrist = _images.parse_image(_WRIST, data[_WRIST])
        unused = np.zeros_like(exterior)
        match self.model_type:
            case _model.ModelType.PI0 | _model.ModelType.PI05:
                image = {"base_0_rgb": exterior, "left_wrist_0_rgb": wrist, "right_wrist_0_rgb": unused}
                image_mask = {"base_0_rgb": np.True_, "left_wrist_0_rgb": np.True_, "right_wrist_0_rgb": np.False_}
            case _model.ModelType.PI0_FAST:
                image = {"base_0_rgb": exterior, "base_1_rgb": unused, "wrist_0_rgb": wrist}
                image_mask = dict.fromkeys(image, np.True_)
            case _:
                raise ValueError(f"model_type: found {self.model_type!r}, expected a ModelType")

        # Numbers and text.
        inputs = {
            "state": np.concatenate([data[JOINTS], np.atleast_1d(data[GRIPPER])]),
            "image": image,
            "image_mask": image_mask,
        }
        if "actions" in data:
            inputs["actions"] = np.asarray(data["actions"])
        if "prompt" in data:
            prompt = data["prompt"]
            inputs["prompt"] = prompt.decode("utf-8") if isinstance(prompt, bytes) else prompt
        return inputs


@dataclasses.dataclass(frozen=True)
class DroidOutputs(transforms.DataTransformFn):
    """Keep the robot's 8 numbers of the model's actions [..., d]."""

    def __call__(self, data: dict) -> dict:
        """Return only `actions`."""
        return {"actions": np.asarray(data["actions"])[..., :_NUM_ACTION_DIMS]}
