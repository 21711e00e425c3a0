import copy

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from openpi import transforms
from openpi.models.model import ModelType
from openpi.policies import realman_policy
from openpi.policies.realman_policy import RealmanInputs
from openpi.policies.realman_policy import RealmanOutputs
from openpi.shared.normalize import NormStats

floats = st.floats(-3.125, 3.125, width=32)
vectors = hnp.arrays(np.float32, 14, elements=floats)
chunks = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(14)), elements=floats)
arm_orders = st.sampled_from(["right_left", "left_right"])

CAMERA_LEVELS = {"cam_high": 10, "cam_low": 20, "cam_left_wrist": 30, "cam_right_wrist": 40}


def image(level, height=24, width=32):
    return np.full((height, width, 3), level, np.uint8)


def make_sample(**changes):
    sample = {
        "state": np.arange(14, dtype=np.float32),
        "images": {camera: image(level) for camera, level in CAMERA_LEVELS.items()},
        "prompt": "fold the towel",
    }
    return sample | changes


def levels(inputs):
    return {slot: int(pixels[0, 0, 0]) for slot, pixels in inputs["image"].items()}


def test_the_left_arm_comes_first_in_the_model():
    inputs = RealmanInputs(ModelType.PI0)(make_sample(actions=np.arange(28.0).reshape(2, 14)))
    np.testing.assert_array_equal(inputs["state"], [*range(7, 14), *range(7)])
    np.testing.assert_array_equal(inputs["actions"][1], [*range(21, 28), *range(14, 21)])
    names = [realman_policy.DIM_NAMES[int(i)] for i in inputs["state"]]
    assert names[0] == "left_waist"
    assert names[6] == "left_gripper"
    assert names[13] == "right_gripper"


def test_data_with_the_left_arm_first_pass_unchanged():
    inputs = RealmanInputs(ModelType.PI0, arm_order="left_right")(make_sample())
    np.testing.assert_array_equal(inputs["state"], np.arange(14))


@settings(max_examples=50, deadline=None)
@given(vectors, chunks, arm_orders)
def test_outputs_invert_inputs_on_the_fourteen_numbers(state, actions, arm_order):
    inputs = RealmanInputs(ModelType.PI05, arm_order=arm_order)(make_sample(state=state, actions=actions))
    outputs = RealmanOutputs(arm_order=arm_order)({"actions": inputs["actions"], "state": inputs["state"]})
    assert outputs.keys() == {"actions"}
    np.testing.assert_array_equal(outputs["actions"], actions)


@settings(max_examples=30, deadline=None)
@given(vectors, chunks, arm_orders, st.booleans())
def test_actions_survive_the_whole_way_into_the_model_and_out_of_it(state, actions, arm_order, use_quantiles):
    spread = np.linspace(0.5, 2.0, 14)
    stats = NormStats(mean=spread - 1, std=spread, q01=-spread, q99=2 * spread)
    norm_stats = {"state": stats, "actions": stats}
    into_model = transforms.compose(
        [
            RealmanInputs(ModelType.PI0, arm_order=arm_order),
            transforms.DeltaActions(realman_policy.DELTA_MASK),
            transforms.Normalize(norm_stats, use_quantiles),
            transforms.PadStatesAndActions(32),
        ]
    )
    out_of_model = transforms.compose(
        [
            transforms.Unnormalize(norm_stats, use_quantiles),
            transforms.AbsoluteActions(realman_policy.DELTA_MASK),
            RealmanOutputs(arm_order=arm_order),
        ]
    )
    inputs = into_model(make_sample(state=state, actions=actions))
    assert inputs["actions"].shape == (len(actions), 32)
    outputs = out_of_model({"state": inputs["state"], "actions": inputs["actions"]})
    np.testing.assert_allclose(outputs["actions"], actions, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(vectors, chunks)
def test_joints_are_relative_and_grippers_absolute_for_the_model(state, actions):
    inputs = RealmanInputs(ModelType.PI0)(make_sample(state=state, actions=actions))
    delta = transforms.DeltaActions(realman_policy.DELTA_MASK)(inputs)["actions"]
    for model_dim, name in enumerate(realman_policy.DIM_NAMES[7:] + realman_policy.DIM_NAMES[:7]):
        data_dim = realman_policy.DIM_NAMES.index(name)
        start = 0.0 if name.endswith("gripper") else state[data_dim]
        np.testing.assert_allclose(delta[:, model_dim], actions[:, data_dim] - start, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_type", ModelType)
def test_cameras_fill_their_slots_and_the_other_base_camera_is_not_used(model_type):
    inputs = RealmanInputs(model_type)(make_sample())
    assert levels(inputs) == {"base_0_rgb": 10, "left_wrist_0_rgb": 30, "right_wrist_0_rgb": 40}
    assert all(inputs["image_mask"].values())
    inputs = RealmanInputs(model_type, base_camera="cam_low")(make_sample())
    assert levels(inputs)["base_0_rgb"] == 20


@pytest.mark.parametrize(("model_type", "mask"), [("pi0", False), ("pi05", False), ("pi0_fast", True)])
def test_a_missing_wrist_camera_is_black_and_masked_except_for_fast(model_type, mask):
    images = {camera: image(level) for camera, level in CAMERA_LEVELS.items() if camera != "cam_left_wrist"}
    inputs = RealmanInputs(ModelType(model_type))(make_sample(images=images))
    np.testing.assert_array_equal(inputs["image"]["left_wrist_0_rgb"], image(0))
    assert bool(inputs["image_mask"]["left_wrist_0_rgb"]) is mask
    assert inputs["image_mask"]["base_0_rgb"].dtype == np.bool_


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, (5, 7, 3)), st.booleans(), st.booleans())
def test_layout_and_dtype_of_an_image_make_no_difference(pixels, is_float, is_channels_first):
    given_pixels = pixels.astype(np.float32) / 255 if is_float else pixels
    given_pixels = np.moveaxis(given_pixels, -1, 0) if is_channels_first else given_pixels
    inputs = RealmanInputs(ModelType.PI0)(make_sample(images={"cam_high": given_pixels}))
    assert inputs["image"]["base_0_rgb"].dtype == np.uint8
    np.testing.assert_array_equal(inputs["image"]["base_0_rgb"], pixels)


def test_prompt_and_actions_are_passed_on_only_if_they_are_there():
    assert RealmanInputs(ModelType.PI0)(make_sample())["prompt"] == "fold the towel"
    sample = make_sample()
    del sample["prompt"]
    assert RealmanInputs(ModelType.PI0)(sample).keys() == {"state", "image", "image_mask"}


def test_a_sample_is_not_changed_even_when_read_only():
    sample = make_sample(actions=np.zeros((2, 14)))
    for leaf in [sample["state"], sample["actions"], *sample["images"].values()]:
        leaf.flags.writeable = False
    before = copy.deepcopy(sample)
    RealmanInputs(ModelType.PI0)(sample)
    assert sample.keys() == before.keys()
    assert sample["images"].keys() == before["images"].keys()
    np.testing.assert_array_equal(sample["state"], before["state"])


def nan_state():
    state = np.zeros(14)
    state[[2, 13]] = np.nan, np.inf
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": np.zeros(13)}, r"state: found float64 \[13\], expected numbers \[14\]"),
        ({"state": np.zeros((1, 14))}, r"state: found float64 \[1, 14\]"),
        ({"state": np.array(["a"] * 14)}, r"state: found <U1 \[14\]"),
        ({"state": nan_state()}, "state: 2 numbers are not finite, the first is right_elbow"),
        ({"actions": np.zeros((5, 13))}, r"actions: found float64 \[5, 13\], expected numbers \['horizon', 14\]"),
        ({"actions": np.stack([np.zeros(14), nan_state()])}, "actions: 2 numbers are not finite"),
        ({"images": {}}, r"base camera 'cam_high' is missing among \[\]"),
        ({"images": {"top": image(0), "cam_low": image(0)}}, r"unknown cameras \['top'\].*, base camera 'cam_high'"),
        ({"images": [image(0)]}, "'images' is list, expected a dict"),
        ({"images": {"cam_high": image(0)[..., 0]}}, r"image 'cam_high': found shape \[24, 32\]"),
        ({"images": {"cam_high": np.zeros((0, 32, 3), np.uint8)}}, r"found shape \[0, 32, 3\]"),
        ({"images": {"cam_high": np.zeros((2, 3, 8, 8), np.uint8)}}, r"found shape \[2, 3, 8, 8\]"),
        ({"images": {"cam_high": image(0).astype(np.int64)}}, "found int64, expected uint8"),
        ({"images": {"cam_high": image(0) + np.float32(1.5)}}, "found floats from 1.5 to 1.5, expected 0 to 1"),
        ({"images": {"cam_high": image(0) - np.float32(0.1)}}, "expected 0 to 1"),
        ({"images": {"cam_high": image(0) * np.float32(np.nan)}}, "found floats from nan"),
    ],
)
def test_a_wrong_observation_is_refused_with_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        RealmanInputs(ModelType.PI0)(make_sample(**changes))
    assert "\n" not in str(error.value)


def test_a_number_is_named_in_the_order_of_the_data():
    with pytest.raises(ValueError, match="the first is left_elbow"):
        RealmanInputs(ModelType.PI0, arm_order="left_right")(make_sample(state=nan_state()))


def test_everything_that_is_missing_is_named_at_once():
    with pytest.raises(ValueError, match="observation: 'state' is missing, 'images' is missing"):
        RealmanInputs(ModelType.PI0)({"prompt": "go"})


def test_integers_are_taken_as_numbers():
    inputs = RealmanInputs(ModelType.PI0)(make_sample(state=list(range(14))))
    assert inputs["state"].dtype.kind == "f"


@pytest.mark.parametrize("leading", [(), (25,), (2, 50)])
def test_outputs_keep_the_first_fourteen_numbers_whatever_axes_come_before(leading):
    actions = np.random.default_rng(0).normal(size=(*leading, 32))
    result = RealmanOutputs()({"actions": actions})["actions"]
    assert result.shape == (*leading, 14)
    np.testing.assert_array_equal(result[..., :7], actions[..., 7:14])
    np.testing.assert_array_equal(result[..., 7:], actions[..., :7])


def test_outputs_refuse_actions_that_are_too_narrow():
    with pytest.raises(ValueError, match=r"actions: found shape \[50, 13\], expected at least 14"):
        RealmanOutputs()({"actions": np.zeros((50, 13))})


@pytest.mark.parametrize("options", [{"arm_order": "right"}, {"base_camera": "cam_left_wrist"}])
def test_an_unknown_choice_is_refused_when_the_transform_is_made(options):
    with pytest.raises(ValueError, match="expected one of"):
        RealmanInputs(ModelType.PI0, **options)


def test_the_example_is_a_whole_request():
    example = realman_policy.make_realman_example()
    assert set(example["images"]) == set(realman_policy.CAMERAS)
    inputs = RealmanInputs(ModelType.PI0)(example)
    assert inputs["state"].shape == (14,)
    assert inputs["prompt"] == "do something"
    assert not np.array_equal(example["state"], realman_policy.make_realman_example()["state"])


NAMES = list(realman_policy.DIM_NAMES)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (NAMES, "right_left"),
        (NAMES[7:] + NAMES[:7], "left_right"),
        ([f"l_joint{i}" for i in range(7)] + [f"r_joint{i}" for i in range(7)], "left_right"),
        ([f"jointRight{i}" for i in range(7)] + [f"jointLeft{i}" for i in range(7)], "right_left"),
        ([f"arm_RIGHT.{i}" for i in range(7)] + [f"q{i}" for i in range(7)], "right_left"),
        ([f"q{i}" for i in range(7)] + [f"rightArm{i}" for i in range(7)], "left_right"),
        ([f"\u53f3\u81c2{i}" for i in range(7)] + [f"\u5de6\u81c2{i}" for i in range(7)], "right_left"),
        ([f"{side}arm_{i}" for side in "lr" for i in range(7)], "left_right"),
        ([f"{side}{name}" for side in "RL" for name in NAMES[:7]], "right_left"),
        ([f"joint{side}{i}" for side in ("left", "right") for i in range(7)], "left_right"),
        ([f"{side}_finger_left_{i}" for side in "lr" for i in range(7)], "left_right"),
        ([f"{side}_gripper_right_finger{i}" for side in ("left", "right") for i in range(7)], "left_right"),
        (["lift", "roll", "rotate", "lower", "reach", "yaw", "release"] * 2, None),
        (["left", "right"], "left_right"),
        (["left"], None),
        ([], None),
        ([str(i) for i in range(14)], None),
        (["x", "y", "z", "r", "p", "y", "g"] * 2, None),
        (["upright"] * 14, None),
        (["left", "right"] * 2, None),
    ],
)
def test_names_tell_which_arm_is_first(names, order):
    assert realman_policy.find_arm_order(names) == order


@pytest.mark.parametrize("names", [["left", "right"] * 7, ["left"] * 6 + ["right"] * 6 + ["a", "b"], ["left_arm"] * 14])
def test_names_that_mix_the_arms_are_refused(names):
    with pytest.raises(ValueError, match="mix the arms, expected 7 of one arm and then 7 of the other"):
        realman_policy.find_arm_order(names)
    with pytest.raises(ValueError, match="Correct the names in the file"):
        RealmanInputs(ModelType.PI0).check_names({"state": names})
