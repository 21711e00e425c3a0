"""Two definitions of one robot agree: openpi's policy module and realman.spec."""

import json

import numpy as np

from openpi.models import model as _model
from openpi.policies import realman_policy
from realman import spec


def test_both_sides_name_the_same_numbers_in_the_same_order():
    assert tuple(realman_policy.DIM_NAMES) == spec.DIM_NAMES


def test_both_sides_name_the_same_cameras():
    assert tuple(realman_policy.CAMERAS) == spec.CAMERAS


def test_both_sides_execute_the_same_part_of_a_chunk():
    assert realman_policy.ACTION_CHUNK == spec.ACTION_CHUNK


def test_both_sides_have_the_same_ranges():
    np.testing.assert_allclose(realman_policy.STATE_LOWER, spec.LOWER, rtol=1e-12)
    np.testing.assert_allclose(realman_policy.STATE_UPPER, spec.UPPER, rtol=1e-12)


def test_the_delta_mask_covers_the_joints_and_spares_the_grippers():
    mask = np.array(realman_policy.DELTA_MASK)
    assert mask.shape == (spec.NUM_DIMS,)
    assert np.flatnonzero(mask).tolist() == list(spec.JOINT_DIMS)


def test_dataset_names_are_those_of_a_real_users_dataset(golden_dir):
    info = json.loads((golden_dir / "user_info.json").read_text())
    assert tuple(info["features"][spec.STATE_KEY]["names"][0]) == spec.DIM_NAMES
    assert {
        k.removeprefix(spec.IMAGE_KEY_PREFIX) for k in info["features"] if k.startswith(spec.IMAGE_KEY_PREFIX)
    } == set(spec.CAMERAS)


def test_the_policys_example_is_a_request_of_this_robot():
    example = realman_policy.make_realman_example()
    assert example["state"].shape == (spec.NUM_DIMS,)
    assert set(example["images"]) <= set(spec.CAMERAS)
    inputs = realman_policy.RealmanInputs(model_type=_model.ModelType.PI0)(example)
    assert set(inputs["image"]) == set(_model.IMAGE_KEYS)
