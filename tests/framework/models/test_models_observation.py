"""Observations: dict form, preparation, augmentation."""

import copy
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi.models import augmentation
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import pi0_fast
from openpi.shared import errors

augment = jax.jit(augmentation.augment, static_argnames="geometric")


def sample_dict(batch=2, size=224):
    rng = np.random.default_rng(0)
    return {
        "image": {key: rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8) for key in _model.IMAGE_KEYS},
        "image_mask": {key: np.ones(batch, dtype=bool) for key in _model.IMAGE_KEYS},
        "state": rng.normal(size=(batch, 8)).astype(np.float32),
        "tokenized_prompt": rng.integers(0, 9, (batch, 5)),
        "tokenized_prompt_mask": np.ones((batch, 5), dtype=bool),
    }


def test_from_dict_scales_uint8_images_and_leaves_the_callers_dict_alone():
    data = sample_dict()
    before = copy.deepcopy(data)
    observation = _model.Observation.from_dict(data)
    jax.tree.map(np.testing.assert_array_equal, data, before)
    image = observation.images["base_0_rgb"]
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, before["image"]["base_0_rgb"] / 127.5 - 1, atol=1e-6)


def test_from_dict_keeps_float_images_and_to_dict_inverts_it():
    data = sample_dict()
    data["image"] = {key: image / np.float32(255) for key, image in data["image"].items()}
    returned = _model.Observation.from_dict(data).to_dict()
    assert {key for key, value in returned.items() if value is None} == {"token_ar_mask", "token_loss_mask"}
    jax.tree.map(np.testing.assert_array_equal, {key: returned[key] for key in data}, data)


def test_a_camera_without_a_mask_counts_as_present():
    data = sample_dict()
    del data["image_mask"]["left_wrist_0_rgb"]
    assert _model.Observation.from_dict(data).image_masks["left_wrist_0_rgb"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["image", "state"], r"expected also \['image', 'state'\]"),
        (["tokenized_prompt"], "'tokenized_prompt' and 'tokenized_prompt_mask' must come together"),
        (["tokenized_prompt_mask"], "must come together"),
    ],
)
def test_from_dict_names_everything_that_is_missing(remove, message):
    data = {key: value for key, value in sample_dict().items() if key not in remove}
    with pytest.raises(errors.DataError, match=message):
        _model.Observation.from_dict(data)


def test_an_observation_is_a_pytree():
    observation = _model.Observation.from_dict(sample_dict())
    shapes = jax.tree.map(lambda leaf: leaf.shape, observation)
    assert shapes.images["base_0_rgb"] == (2, 224, 224, 3)
    assert shapes.token_ar_mask is None


def test_preprocessing_selects_orders_and_resizes_images():
    data = sample_dict(size=112)
    data["image"] = {key: data["image"][key] for key in reversed(_model.IMAGE_KEYS)}
    data["image"]["extra"] = data["image"]["base_0_rgb"]
    observation = _model.Observation.from_dict(data)
    prepared = _model.preprocess_observation(None, observation)
    assert tuple(prepared.images) == tuple(prepared.image_masks) == _model.IMAGE_KEYS
    assert {image.shape for image in prepared.images.values()} == {(2, 224, 224, 3)}
    assert observation.images["extra"].shape == (2, 112, 112, 3)


def test_preprocessing_names_missing_cameras():
    observation = _model.Observation.from_dict(sample_dict())
    with pytest.raises(errors.DataError, match=r"expected also \['cam_a', 'cam_b'\]"):
        _model.preprocess_observation(None, observation, image_keys=("cam_a", "base_0_rgb", "cam_b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": (3, 8)}, "'image/base_0_rgb' is float32 [2, 224, 224, 3], expected float [3, *, *, 3]; 'image_mask/"),
        ({"state": (8,)}, "'state' is float32 [8], expected [8, *]; "),
        ({"image": np.zeros((2, 224, 224, 3), np.uint8)}, "rgb' is uint8 [2, 224, 224, 3], expected float [2, *, *, 3]"),
        ({"image": (2, 224, 224, 1)}, "'image/base_0_rgb' is float32 [2, 224, 224, 1], expected float [2, *, *, 3]"),
        ({"mask": np.ones(1, bool)}, "'image_mask/base_0_rgb' is bool [1], expected bool [2]"),
        ({"tokenized_prompt": np.zeros((1, 5), int)}, "'tokenized_prompt' is int64 [1, 5], expected integer [2, *]"),
        ({"tokenized_prompt": (2, 5)}, "'tokenized_prompt' is float32 [2, 5], expected integer [2, *]"),
        ({"tokenized_prompt_mask": np.ones((2, 4), bool)}, "'tokenized_prompt_mask' is bool [2, 4], expected bool [2, 5]"),
        ({"token_ar_mask": np.zeros((2, 6), int)}, "'token_ar_mask' is int64 [2, 6], expected [2, 5]"),
        ({"token_loss_mask": np.zeros((1, 5), bool)}, "'token_loss_mask' is bool [1, 5], expected [2, 5]"),
    ],
)  # fmt: skip
def test_parts_of_a_batch_that_do_not_fit_each_other_are_named_with_what_was_found_and_expected(changes, message):
    observation = _model.Observation.from_dict(sample_dict())
    changes = {key: np.zeros(x, np.float32) if isinstance(x, tuple) else x for key, x in changes.items()}
    images, masks = dict(observation.images), dict(observation.image_masks)
    images["base_0_rgb"] = changes.pop("image", images["base_0_rgb"])
    masks["base_0_rgb"] = changes.pop("mask", masks["base_0_rgb"])
    with pytest.raises(errors.DataError) as caught:
        _model.preprocess_observation(None, observation.replace(images=images, image_masks=masks, **changes))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("pi05", [False, True])
def test_actions_noise_and_state_of_another_model_are_named_with_what_was_found_and_expected(tiny_model, pi05):
    config = dataclasses.replace(tiny_model, pi05=pi05, action_dim=14)
    model, key = nnx.eval_shape(config.create, jax.random.key(0)), jax.random.key(1)
    observation, actions = config.fake_obs(2), config.fake_act(2)
    for wrong in (actions[..., :13], actions[:, :5], actions[:1]):
        found = rf"is float32 \{list(wrong.shape)}, expected float \[2, 6, 14\]"
        with pytest.raises(errors.DataError, match=f"'actions' {found}"):
            model.compute_loss(key, observation, wrong)
        with pytest.raises(errors.DataError, match=f"'noise' {found}"):
            model.sample_actions(key, observation, noise=wrong)
    narrow = observation.replace(state=observation.state[:, :13])
    if pi05:  # the state is part of the prompt
        model.draw_loss_inputs(key, narrow, actions)
        return
    for call in (lambda: model.sample_actions(key, narrow), lambda: model.compute_loss(key, narrow, actions)):
        with pytest.raises(errors.DataError, match=r"'state' is float32 \[2, 13\], expected \[2, 14\]"):
            call()


def test_training_moves_the_scene_camera_but_only_recolours_wrist_cameras():
    # A white square on black: its corners show any geometric change, whatever the colours.
    image = np.zeros((8, 224, 224, 3), np.uint8)
    image[:, 60:160, 60:160] = 255
    data = sample_dict(batch=8) | {"image": dict.fromkeys(_model.IMAGE_KEYS, image)}
    observation = jax.tree.map(jnp.asarray, _model.Observation.from_dict(data))
    prepare = jax.jit(_model.preprocess_observation, static_argnames="train")
    prepared = prepare(jax.random.key(0), observation, train=True)
    for key in ("left_wrist_0_rgb", "right_wrist_0_rgb"):
        lit = np.asarray(prepared.images[key]).max(axis=-1) > -0.9
        np.testing.assert_array_equal(lit[:, 60:160, 60:160], True)
    scene = np.asarray(prepared.images["base_0_rgb"]).max(axis=-1) > -0.9
    assert not all(np.array_equal(one, image[0, ..., 0] > 0) for one in scene)


def test_augmentation_repeats_with_its_key_and_stays_in_range():
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(6, 32, 48, 3)), jnp.float32)
    first, again = (augment(jax.random.key(2), images, geometric=True) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.min() >= -1e-6
    assert first.max() <= 1 + 1e-6
    assert np.abs(first - augment(jax.random.key(3), images, geometric=True)).max() > 0.1


def test_about_half_of_the_images_keep_their_colours():
    image = np.random.default_rng(1).uniform(size=(4, 4, 3))
    images = jnp.broadcast_to(jnp.asarray(image, jnp.float32), (200, 4, 4, 3))
    changed = np.abs(augment(jax.random.key(2), images, geometric=False) - images).max(axis=(1, 2, 3))
    assert 70 < (changed > 1e-3).sum() < 130


@pytest.mark.parametrize(("config", "num_leaves"), [(pi0_config.Pi0Config(), 9), (pi0_fast.Pi0FASTConfig(), 11)])
def test_fake_inputs_have_the_shapes_of_the_specification(config, num_leaves):
    observation, actions = config.inputs_spec(batch_size=3)
    for spec, fake in ((observation, config.fake_obs(3)), (actions, config.fake_act(3))):
        jax.tree.map(lambda s, x: (s.shape, s.dtype) == (x.shape, x.dtype) or pytest.fail(f"{s} {x}"), spec, fake)
    assert len(jax.tree.leaves(observation)) == num_leaves
    assert actions.shape == (3, config.action_horizon, config.action_dim)
    assert observation.images["base_0_rgb"].shape == (3, 224, 224, 3)
    assert observation.tokenized_prompt.shape == (3, config.max_token_len)
