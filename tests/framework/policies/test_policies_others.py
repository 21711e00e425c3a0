import copy
import json
import pathlib
import zlib

import numpy as np
import pytest

from openpi import transforms
from openpi.models.model import ModelType
from openpi.policies import aloha_policy
from openpi.policies import droid_policy
from openpi.policies import libero_policy

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "framework.json").read_text())["policies"]

STATE = np.asarray(GOLDEN["state14"])
ACTIONS = np.asarray(GOLDEN["actions14"])


def wave_image():
    """The picture of the golden cases: (7y+3x+50c)%256."""
    y, x, c = np.ogrid[:24, :32, :3]
    return ((7 * y + 3 * x + 50 * c) % 256).astype(np.uint8)


def channels_first(image, *, is_float=False):
    image = np.moveaxis(image, -1, 0)
    return image.astype(np.float32) / 255 if is_float else image


def aloha_sample():
    return {
        "state": STATE,
        "images": {
            "cam_high": channels_first(wave_image()),
            "cam_right_wrist": channels_first(wave_image(), is_float=True),
        },
        "actions": ACTIONS,
        "prompt": "go",
    }


def libero_sample():
    return {
        "observation/state": np.arange(8.0),
        "observation/image": wave_image(),
        "observation/wrist_image": channels_first(wave_image(), is_float=True),
        "actions": np.ones((3, 7)),
        "prompt": "go",
    }


def droid_sample():
    return {
        "observation/exterior_image_1_left": wave_image(),
        "observation/wrist_image_left": channels_first(wave_image(), is_float=True),
        "observation/joint_position": np.arange(7.0),
        "observation/gripper_position": np.array(0.5),
        "prompt": "go",
    }


MODEL_TYPES = [model_type.value for model_type in ModelType]
CASES = {
    **{f"aloha_inputs_adapt={x}": (aloha_policy.AlohaInputs(adapt_to_pi=x), aloha_sample()) for x in (True, False)},
    **{f"aloha_outputs_adapt={x}": (aloha_policy.AlohaOutputs(adapt_to_pi=x), None) for x in (True, False)},
    **{f"libero_inputs_{t}": (libero_policy.LiberoInputs(ModelType(t)), libero_sample()) for t in MODEL_TYPES},
    **{f"droid_inputs_{t}": (droid_policy.DroidInputs(ModelType(t)), droid_sample()) for t in MODEL_TYPES},
}


@pytest.mark.parametrize("name", GOLDEN["results"])
def test_results_are_the_golden_ones(name):
    transform, sample = CASES[name]
    if sample is None:
        sample = {"actions": np.concatenate([ACTIONS, np.ones((len(ACTIONS), 18))], axis=-1), "state": STATE}
    result = transforms.flatten_dict(transform(sample))
    assert result.keys() == GOLDEN["results"][name].keys()
    for key, expected in GOLDEN["results"][name].items():
        value = np.asarray(result[key])
        assert list(value.shape) == expected["shape"], key
        assert str(value.dtype) == expected["dtype"], key
        if expected["crc32"] is not None:
            assert zlib.crc32(value.tobytes()) == expected["crc32"], key
        elif value.dtype.kind == "U":
            assert value.item() == expected["value"]
        else:
            np.testing.assert_allclose(value, expected["value"], rtol=0, atol=1e-6)


OUTPUTS = {"libero_outputs": libero_policy.LiberoOutputs(), "droid_outputs": droid_policy.DroidOutputs()}


@pytest.mark.parametrize("name", [*CASES, *OUTPUTS])
def test_a_sample_is_not_changed_even_when_read_only(name):
    transform, sample = CASES.get(name) or (OUTPUTS[name], None)
    sample = copy.deepcopy(sample or {"actions": np.ones((3, 32)), "state": STATE})
    before = copy.deepcopy(sample)
    for leaf in transforms.flatten_dict(sample).values():
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
    transform(sample)
    now, before = transforms.flatten_dict(sample), transforms.flatten_dict(before)
    assert now.keys() == before.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(now[key], value)


def test_aloha_takes_images_with_channels_last_as_well():
    sample = aloha_sample()
    expected = aloha_policy.AlohaInputs()(sample)["image"]
    last = {camera: np.moveaxis(image, 0, -1) for camera, image in sample["images"].items()}
    result = aloha_policy.AlohaInputs()(sample | {"images": last})["image"]
    for slot, image in expected.items():
        np.testing.assert_array_equal(result[slot], image)


@pytest.mark.parametrize(
    ("opening", "angle"),
    [(-0.2, -1.957852), (0.0, -1.079866), (0.25, -0.513078), (0.5, -0.140056), (1.0, 0.945653), (1.2, 0.945653)],
)
def test_aloha_grippers_of_the_state_are_converted_to_the_base_models_angle(opening, angle):
    inputs = aloha_policy.AlohaInputs()(aloha_sample() | {"state": np.full(14, opening)})
    np.testing.assert_allclose(inputs["state"][[6, 13]], angle, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("angle", "command"), [(-1.08, 0.042087), (0.0, 0.553378), (0.5, 0.790087), (1.0, 1.026795)])
def test_aloha_predicted_grippers_are_converted_to_commands(angle, command):
    outputs = aloha_policy.AlohaOutputs()({"actions": np.full((2, 32), angle)})
    np.testing.assert_allclose(outputs["actions"][:, [6, 13]], command, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adapt_to_pi", [True, False])
def test_aloha_outputs_invert_what_inputs_do_to_actions(adapt_to_pi):
    sample = aloha_sample() | {"actions": ACTIONS[None]}
    inputs = aloha_policy.AlohaInputs(adapt_to_pi=adapt_to_pi)(sample)
    outputs = aloha_policy.AlohaOutputs(adapt_to_pi=adapt_to_pi)(inputs)
    np.testing.assert_allclose(outputs["actions"], ACTIONS[None], rtol=0, atol=1e-12)


def test_an_integer_aloha_state_keeps_its_gripper():
    inputs = aloha_policy.AlohaInputs()(aloha_sample() | {"state": np.ones(14, np.int64)})
    np.testing.assert_allclose(inputs["state"][6], 0.945653, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"cam_top": wave_image()}}, r"images: expected some of \('cam_high'.*found \('cam_top',\)"),
        ({"images": {"cam_low": wave_image()}}, r"found \['cam_low'\], expected also \['cam_high'\]"),
        ({"state": np.zeros(13)}, r"state: found shape \[13\], expected 14"),
        ({"images": {"cam_high": wave_image()[..., :2]}}, r"image 'cam_high': found shape \[24, 32, 2\]"),
        ({"images": {"cam_high": wave_image().astype(np.int32)}}, "found int32"),
        ({"images": {"cam_high": wave_image() * 1.0}}, "expected 0 to 1"),
    ],
)
def test_aloha_refuses_a_wrong_sample(changes, message):
    with pytest.raises(ValueError, match=message):
        aloha_policy.AlohaInputs()(aloha_sample() | changes)


@pytest.mark.parametrize(
    "inputs", [aloha_policy.AlohaInputs(), CASES["libero_inputs_pi0"][0], CASES["droid_inputs_pi0"][0]]
)
def test_all_missing_keys_are_named_at_once(inputs):
    with pytest.raises(ValueError, match=r"observation: found \['prompt'\], expected also \[.*,.*\]"):
        inputs({"prompt": "go"})


def test_droid_decodes_prompts_in_bytes():
    inputs = droid_policy.DroidInputs(ModelType.PI05)(droid_sample() | {"prompt": "g\u00f6".encode()})
    assert inputs["prompt"] == "g\u00f6"


@pytest.mark.parametrize("leading", [(), (15,), (2, 15)])
def test_outputs_keep_the_robots_numbers_whatever_axes_come_before(leading):
    actions = np.random.default_rng(0).normal(size=(*leading, 32))
    for outputs, dim in ((libero_policy.LiberoOutputs(), 7), (droid_policy.DroidOutputs(), 8)):
        np.testing.assert_array_equal(outputs({"actions": actions})["actions"], actions[..., :dim])


@pytest.mark.parametrize(
    ("example", "inputs"),
    [
        (aloha_policy.make_aloha_example(), aloha_policy.AlohaInputs()),
        (libero_policy.make_libero_example(), libero_policy.LiberoInputs(ModelType.PI0)),
        (droid_policy.make_droid_example(), droid_policy.DroidInputs(ModelType.PI0)),
    ],
)
def test_each_example_is_a_whole_request(example, inputs):
    result = inputs(example)
    assert result["prompt"] == "do something"
    assert {image.shape for image in result["image"].values()} == {(224, 224, 3)}
