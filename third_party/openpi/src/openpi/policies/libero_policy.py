"""Convert between the LIBERO simulator and the model.

The simulator has one arm and two cameras.
"""

import dataclasses
from typing import Any

import numpy as np

from openpi import transforms
from openpi.models import model as _model
from openpi.policies import images as _images

_NUM_ACTION_DIMS = 7


def make_libero_example() -> dict[str, Any]:
    """Return a random request as a client sends it."""
    rng = np.random.default_rng()
    return {
        "observation/state": rng.random(8),
        "observation/image": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "prompt": "do something",
    }


@dataclasses.dataclass(frozen=True)
class LiberoInputs(transforms.DataTransformFn):
    """Convert a sample of the simulator to the model's inputs.

    A sample has `observation/state` [8], `observation/image` and `observation/wrist_image` ([h, w, 3] or [3, h, w]), and
    optionally `actions` [ah, 7] and `prompt`.
    """

    # Determines whether the slot without a camera counts as seen. pi0-FAST was trained this way.
    model_type: _model.ModelType

    def __call__(self, data: dict) -> dict:
        """Return `state`, `image`, `image_mask`, and `actions` and `prompt` if present."""
        _images.require_keys(data, "observation/state", "observation/image", "observation/wrist_image")
        base = _images.parse_image("observation/image", data["observation/image"])
        inputs = {
            "state": data["observation/state"],
            "image": {
                "base_0_rgb": base,
                "left_wrist_0_rgb": _images.parse_image("observation/wrist_image", data["observation/wrist_image"]),
                "right_wrist_0_rgb": np.zeros_like(base),
            },
            "image_mask": {
                "base_0_rgb": np.True_,
                "left_wrist_0_rgb": np.True_,
                "right_wrist_0_rgb": np.bool_(self.model_type == _model.ModelType.PI0_FAST),
            },
        }
        return inputs | {key: data[key] for key in ("actions", "prompt") if key in data}


@dataclasses.dataclass(frozen=True)
class LiberoOutputs(transforms.DataTransformFn):
    """Keep the simulator's 7 numbers of the model's actions [..., d]."""

    def __call__(self, data: dict) -> dict:
        """Return only `actions`."""
        return {"actions": np.asarray(data["actions"])[..., :_NUM_ACTION_DIMS]}
