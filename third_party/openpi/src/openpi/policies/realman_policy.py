"""Convert between two RealMan RM65 arms and the model.

This module defines the learning contract. A sample (dataset row or client request) has `state` [14], `images` {camera:
uint8 or float, HWC or CHW}, and optionally `actions` [ah, 14] and `prompt`. The 14 numbers are six joints in rad and a
gripper in 0..1 (1 = open) of the right arm, then the same of the left arm. In the model's layout the left arm comes first,
as with pi0's other two-armed robots.

It uses only names that every openpi has, so this file also works unchanged in a checkout of the original.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any, Literal

import numpy as np

from openpi import transforms
from openpi.models import model as _model

_ARM_PARTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")

DIM_NAMES = tuple(f"{side}_{part}" for side in ("right", "left") for part in _ARM_PARTS)
"""Names of the 14 numbers of states and actions."""

NUM_DIMS = len(DIM_NAMES)

CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")

ACTION_CHUNK = 25
"""Steps of a predicted chunk that a client executes before it requests the next: half a second at 50 Hz."""

DELTA_MASK = transforms.make_bool_mask(6, -1, 6, -1)
"""Which numbers of an action are relative to the state for the model: joints, not grippers."""

# RM65-B, base to flange, deg. Source: the vendor's parameter page. Both arms and both directions have the same.
_ARM_LIMITS_RAD = tuple(np.deg2rad((178.0, 130.0, 135.0, 178.0, 128.0, 360.0)).tolist())

STATE_LOWER = np.array((*(-limit for limit in _ARM_LIMITS_RAD), 0.0) * 2)
STATE_UPPER = np.array((*_ARM_LIMITS_RAD, 1.0) * 2)
"""Range of each number of a state: rad for joints, 0..1 for grippers."""

_WRIST_SLOTS = {"left_wrist_0_rgb": "cam_left_wrist", "right_wrist_0_rgb": "cam_right_wrist"}
_BASE_SLOT = "base_0_rgb"

ArmOrder = Literal["right_left", "left_right"]
BaseCamera = Literal["cam_high", "cam_low"]


def make_realman_example() -> dict[str, Any]:
    """Return a random request as a client sends it.

    Tests use it, and servers to warm up.
    """
    rng = np.random.default_rng()
    return {
        "state": rng.uniform(0.0, 1.0, NUM_DIMS),
        "images": {camera: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for camera in CAMERAS},
        "prompt": "do something",
    }


def _swap_arms(x: np.ndarray, arm_order: ArmOrder) -> np.ndarray:
    """Swap the arms of [..., 14] if the right one comes first.

    `arm_order` is that of the data, the model has the left arm first. Swapping twice returns the same numbers.
    """
    if arm_order == "left_right":
        return x
    half = NUM_DIMS // 2
    return np.concatenate([x[..., half:], x[..., :half]], axis=-1)


def find_arm_order(names: Sequence[str]) -> ArmOrder | None:
    """Return which arm the names of the numbers put first.

    A name has its arm as a word (`left_waist`, `jointRight3`), or as a letter (`l_joint1`) if both letters occur. Any
    spelling counts if the names of both halves differ in the arm alone (`larm1` and `rarm1`).

    Returns:
        The order, or None if the names do not say.

    Raises:
        ValueError: There are 14 names, and neither half belongs to one arm.
    """
    half = len(names) // 2
    # The clearest names come first: those that the second half repeats for the other arm.
    if len(names) == 2 * half and (order := _mirrored(names[:half], names[half:])) is not None:
        return order
    sides = _sides(names)
    first, second = set(sides[:half]) - {""}, set(sides[half:]) - {""}
    if len(names) % 2 or not first | second:
        return None
    if len(first) > 1 or len(second) > 1 or first == second:
        if len(names) != NUM_DIMS:
            return None
        raise ValueError(
            f"the names {list(names)} mix the arms, expected {half} of one arm and then {half} of the other"
        )
    return "left_right" if "left" in first or "right" in second else "right_left"


def _mirrored(first: Sequence[str], second: Sequence[str]) -> ArmOrder | None:
    """Return the order if both halves differ in the arm alone."""
    orders = {_order_of(a.lower(), b.lower()) for a, b in zip(first, second, strict=True)}
    return orders.pop() if len(orders) == 1 else None


def _order_of(a: str, b: str) -> ArmOrder | None:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    for left, right in (("left", "right"), ("l", "r")):
        if a[at:].startswith(left) and b[at:] == right + a[at + len(left) :]:
            return "left_right"
        if b[at:].startswith(left) and a[at:] == right + b[at + len(left) :]:
            return "right_left"
    return None


def _sides(names: Sequence[str]) -> list[str]:
    """Return "left", "right" or nothing for each name."""
    words = [[word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[\u5de6\u53f3]", name)] for name in names]
    whole = [_side_of(of_name, ("left", "\u5de6"), ("right", "\u53f3")) for of_name in words]
    # A lone letter can be something else, such as the r of roll.
    letters = [_side_of([w for w in of_name if len(w) == 1], ("l",), ("r",)) for of_name in words]
    return whole if any(whole) or not {"left", "right"} <= set(letters) else letters


def _side_of(words: Sequence[str], left: tuple[str, ...], right: tuple[str, ...]) -> str:
    found = [side for word in words for side, marks in (("left", left), ("right", right)) if word.startswith(marks)]
    return next(iter(found), "")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: found '{value}', expected one of {list(choices)}")


def _check_vectors(name: str, value: Any, axes: Sequence[str], arm_order: ArmOrder) -> np.ndarray:
    """Return `value` as a float array [*axes, 14] of finite numbers."""
    x = np.asarray(value)
    if x.ndim != len(axes) + 1 or x.shape[-1] != NUM_DIMS or x.dtype.kind not in "fiu":
        expected = [*axes, NUM_DIMS]
        raise ValueError(f"{name}: found {x.dtype} {list(x.shape)}, expected numbers {expected}")
    is_finite = np.isfinite(x)
    if not is_finite.all():
        bad = np.argwhere(~is_finite)
        half = NUM_DIMS // 2
        names = DIM_NAMES if arm_order == "right_left" else DIM_NAMES[half:] + DIM_NAMES[:half]
        raise ValueError(f"{name}: {len(bad)} numbers are not finite, the first is {names[bad[0][-1]]}")
    return x.astype(np.result_type(x, np.float32), copy=False)


def _parse_image(name: str, value: Any) -> np.ndarray:
    """Return an image as uint8 [h, w, 3].

    It may have either layout, and be uint8 or float in [0, 1].
    """
    image = np.asarray(value)
    if image.ndim != 3 or image.size == 0 or 3 not in (image.shape[0], image.shape[-1]):
        raise ValueError(
            f"image '{name}': found shape {list(image.shape)}, expected [height, width, 3] or [3, height, width]"
        )
    if image.dtype.kind == "f":
        # The comparisons are False for NaN, so it is refused too.
        if not (image.min() >= 0.0 and image.max() <= 1.0):
            raise ValueError(f"image '{name}': found floats from {image.min()} to {image.max()}, expected 0 to 1")
        image = (255 * image).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"image '{name}': found {image.dtype}, expected uint8, or floats from 0 to 1")
    return image if image.shape[-1] == 3 else np.moveaxis(image, 0, -1)


@dataclasses.dataclass(frozen=True)
class RealmanInputs(transforms.DataTransformFn):
    """Convert a sample of the robot to the model's inputs.

    Training and serving both use it.

    Raises:
        ValueError: A key or the base camera is missing, a camera is unknown, a shape is wrong, or a number is not finite.
    """

    # Determines whether the slot of a missing camera counts as seen. pi0-FAST was trained this way.
    model_type: _model.ModelType

    # Which arm comes first in the data.
    arm_order: ArmOrder = "right_left"

    # Which camera fills the model's base slot. The other one may be present and is not used.
    base_camera: BaseCamera = "cam_high"

    def __post_init__(self) -> None:
        _check_choice("arm_order", self.arm_order, ("right_left", "left_right"))
        _check_choice("base_camera", self.base_camera, ("cam_high", "cam_low"))

    def __call__(self, data: dict) -> dict:
        """Return `state`, `image`, `image_mask`, and `actions` and `prompt` if present."""
        self._check_presence(data)
        image, image_mask = self._fill_slots(data["images"])
        # Statistics are computed on many frames at once. A request has no actions and is always one frame.
        batch = ["batch"] if np.ndim(data.get("actions", 0)) == 3 else []
        state = _check_vectors("state", data["state"], batch, self.arm_order)
        inputs = {
            "state": _swap_arms(state, self.arm_order),
            "image": image,
            "image_mask": image_mask,
        }
        if "actions" in data:
            actions = _check_vectors("actions", data["actions"], [*batch, "horizon"], self.arm_order)
            inputs["actions"] = _swap_arms(actions, self.arm_order)
        if "prompt" in data:
            inputs["prompt"] = data["prompt"]
        return inputs

    def check_names(self, names: Mapping[str, Sequence[str]]) -> str | None:
        """Compare the names of a dataset's numbers with the arm order.

        Args:
            names: The names of each key of a sample. Empty where the dataset states none.

        Returns:
            What is assumed, if the names do not say or an order other than the default overrules them. None if they
            agree.

        Raises:
            ValueError: They contradict the default order or each other.
        """
        # Find the order of each key. All that state one must agree.
        remedy = "Correct the names in the file, or convert the recordings again"
        try:
            orders = {key: find_arm_order(names.get(key, ())) for key in ("state", "actions")}
        except ValueError as e:
            raise ValueError(f"{e}. {remedy}") from e
        known = {order for order in orders.values() if order is not None}
        if len(known) > 1:
            raise ValueError(f"the names put another arm first in 'state' than in 'actions'. {remedy}")
        if not known:
            return (
                f"the names of the numbers do not say which arm comes first, so arm_order '{self.arm_order}' is assumed. "
                "If it is the other one, give --data.arm-order"
            )
        # Compare it with the config's. The other order than the default is your word, and it overrules the file.
        (found,) = known
        if found == self.arm_order:
            return None
        arms = [order.partition("_")[0] for order in (found, self.arm_order)]
        difference = f"the names of the numbers put the {arms[0]} arm first"
        if self.arm_order == RealmanInputs.arm_order:
            raise ValueError(f"{difference}, the config expects the {arms[1]} arm. Give --data.arm-order {found}")
        return (
            f"{difference}, and arm_order '{self.arm_order}' overrules them. "
            "If the names are right, leave --data.arm-order out"
        )

    def _check_presence(self, data: Mapping[str, Any]) -> None:
        """Report all missing keys and wrong camera names together."""
        problems = [f"'{key}' is missing" for key in ("state", "images") if key not in data]
        cameras = data.get("images", {self.base_camera: None})
        if not isinstance(cameras, Mapping):
            problems.append(f"'images' is {type(cameras).__name__}, expected a dict of camera names and images")
        else:
            if unknown := sorted(set(cameras) - set(CAMERAS)):
                problems.append(f"unknown cameras {unknown}, expected some of {list(CAMERAS)}")
            if self.base_camera not in cameras:
                problems.append(f"base camera '{self.base_camera}' is missing among {sorted(cameras)}")
        if problems:
            raise ValueError("observation: " + ", ".join(problems))

    def _fill_slots(self, images: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.bool_]]:
        base = _parse_image(self.base_camera, images[self.base_camera])
        image: dict[str, np.ndarray] = {_BASE_SLOT: base}
        image_mask: dict[str, np.bool_] = {_BASE_SLOT: np.True_}
        for slot, camera in _WRIST_SLOTS.items():
            is_seen = camera in images
            image[slot] = _parse_image(camera, images[camera]) if is_seen else np.zeros_like(base)
            image_mask[slot] = np.bool_(is_seen or self.model_type == _model.ModelType.PI0_FAST)
        return image, image_mask


@dataclasses.dataclass(frozen=True)
class RealmanOutputs(transforms.DataTransformFn):
    """Convert the model's actions [..., d] to the robot's [..., 14].

    d is at least 14. The result has the data's arm order.

    Raises:
        ValueError: d is less than 14.
    """

    # Which arm comes first in the data.
    arm_order: ArmOrder = "right_left"

    def __post_init__(self) -> None:
        _check_choice("arm_order", self.arm_order, ("right_left", "left_right"))

    def __call__(self, data: dict) -> dict:
        """Return only `actions`."""
        actions = np.asarray(data["actions"])
        if actions.shape[-1] < NUM_DIMS:
            raise ValueError(
                f"actions: found shape {list(actions.shape)}, expected at least {NUM_DIMS} numbers per step"
            )
        return {"actions": _swap_arms(actions[..., :NUM_DIMS], self.arm_order)}
