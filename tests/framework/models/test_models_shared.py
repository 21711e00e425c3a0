"""The small tools below the models: filters and jitted methods of nnx, array types, resizing on the device."""

import json
import pathlib
import warnings

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi.shared import array_typing as at
from openpi.shared import errors
from openpi.shared import image_tools
from openpi.shared import nnx_utils

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


calls = []


class Scaled(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.array(3.0))

    def __call__(self, x, *, power=1, twice=False):
        calls.append("trace")
        x = x * self.scale[...] ** power
        return 2 * x if twice else x


def test_module_jit_traces_once_and_holds_the_parameters_of_its_making():
    model = Scaled()
    calls.clear()
    jitted = nnx_utils.module_jit(model.__call__, static_argnames="twice")
    assert jitted(jnp.ones(2)).tolist() == [3.0, 3.0]
    model.scale = nnx.Param(jnp.array(5.0))
    assert jitted(jnp.ones(2)).tolist() == [3.0, 3.0]
    assert calls == ["trace"]
    assert jitted(jnp.ones(2), power=2, twice=True).tolist() == [18.0, 18.0]


def test_module_jit_refuses_what_is_not_a_method_of_a_module():
    for method in (jnp.sin, Scaled.__call__, [].append):
        with pytest.raises(ValueError, match=r"bound to an nnx\.Module"):
            nnx_utils.module_jit(method)


def test_path_regex_matches_the_whole_path_and_state_map_touches_only_what_it_selects():
    state = nnx.state(Scaled())
    assert nnx_utils.PathRegex("linear/.*")(("linear", "bias"), None)
    assert not nnx_utils.PathRegex("linear")(("linear", "bias"), None)
    mapped = nnx_utils.state_map(
        state, nnx_utils.PathRegex(".*/kernel"), lambda leaf: jax.tree.map(lambda x: x.astype(jnp.bfloat16), leaf)
    )
    dtypes = jax.tree.map(lambda leaf: str(leaf.dtype), nnx_utils.to_pure_dict(mapped))
    assert dtypes == {"linear": {"bias": "float32", "kernel": "bfloat16"}, "scale": "float32"}


def test_pure_dicts_of_a_state_round_trip_without_deprecated_calls():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        state = nnx.state(Scaled())
        nnx_utils.replace_by_pure_dict(state, {"scale": jnp.array(7.0)})
        pure = nnx_utils.to_pure_dict(state)
    assert float(pure["scale"]) == 7.0
    assert pure["linear"]["kernel"].shape == (2, 2)


@at.typecheck
def sum_of_equal_lengths(a: at.Float[at.Array, " n"], b: at.Float[at.Array, " n"]) -> at.Float[at.Array, " n"]:
    return a + b


def test_typecheck_refuses_shapes_that_disagree_and_can_be_switched_off():
    one, three = jnp.ones(1), jnp.ones(3)
    assert sum_of_equal_lengths(three, three).tolist() == [2.0] * 3
    with pytest.raises(Exception, match="sum_of_equal_lengths"):
        sum_of_equal_lengths(one, three)
    with at.disable_typechecking():
        assert sum_of_equal_lengths(one, three).shape == (3,)
    with pytest.raises(ZeroDivisionError), at.disable_typechecking():
        raise ZeroDivisionError
    with pytest.raises(Exception, match="sum_of_equal_lengths"):
        sum_of_equal_lengths(one, three)


def test_check_pytree_equality_reports_every_difference_by_path():
    expected = {"a": {"x": np.zeros(2), "y": np.zeros(3)}, "b": np.zeros(1), "d": np.zeros(1)}
    got = {"a": {"x": np.zeros(2), "y": np.zeros(4)}, "c": np.zeros(1), "d": np.zeros(1, np.int32)}
    with pytest.raises(ValueError, match="differ in 4 places") as caught:
        at.check_pytree_equality(expected=expected, got=got, check_shapes=True, check_dtypes=True)
    assert str(caught.value).splitlines()[1:] == [
        "  a/y: shape (4,), expected (3,)",
        "  b: expected, but missing",
        "  c: found, but not expected",
        "  d: dtype int32, expected float64",
    ]
    at.check_pytree_equality(expected=expected, got=expected, check_shapes=True, check_dtypes=True)
    with pytest.raises(ValueError, match="structure"):
        at.check_pytree_equality(expected=[1, 2], got=(1, 2))


@pytest.mark.parametrize("name", ["vga", "tall", "small", "same"])
def test_resizing_on_the_device_equals_the_golden_images(name):
    assert "0.05*y*(c+1)+0.03*x" in json.loads((GOLDEN / "framework.json").read_text())["resize_note"]
    with np.load(GOLDEN / "resize_with_pad.npz") as golden:
        height, width, _ = golden[f"{name}/in_shape"]
        expected_u8, expected_f32 = golden[f"{name}/jax_u8"], golden[f"{name}/jax_f32"]
    y, x, c = np.ogrid[:height, :width, :3]
    image = np.floor(127.5 + 127 * np.sin(0.05 * y * (c + 1) + 0.03 * x)).astype(np.uint8)
    result = np.asarray(image_tools.resize_with_pad(jnp.asarray(image), 224, 224))
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result.astype(int), expected_u8, rtol=0, atol=2)
    scaled = jnp.asarray(image[None], jnp.float32) / 255 * 2 - 1
    result = np.asarray(image_tools.resize_with_pad(scaled, 224, 224)[0])
    # The file holds float16: half a grey level is 4e-3 on this scale.
    np.testing.assert_allclose(result, expected_f32, atol=1e-3)


def test_resizing_pads_with_black_and_refuses_other_types():
    frame = jnp.ones((20, 40, 3))
    result = np.asarray(image_tools.resize_with_pad(frame, 30, 30))
    assert result.shape == (30, 30, 3)
    np.testing.assert_array_equal(result[[0, 6, 22, 29]], -1.0)
    np.testing.assert_allclose(result[7:22], 1.0, rtol=1e-5)
    with pytest.raises(errors.DataError, match="images of bfloat16, expected uint8 or float32"):
        image_tools.resize_with_pad(frame.astype(jnp.bfloat16), 30, 30)
