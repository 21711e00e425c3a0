"""Reading parameters from checkpoints and putting them into models."""

import pathlib

from flax import nnx
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from openpi.models import gemma
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.shared import errors
from openpi.shared import nnx_utils

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
SIZE = gemma.Config(width=8, depth=1, mlp_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=16)
CONFIG = pi0_config.Pi0Config(
    dtype="float32",
    paligemma_variant=SIZE,
    action_expert_variant=SIZE,
    action_dim=4,
    action_horizon=3,
    max_token_len=5,
    vision_variant="mu/112",
)


@pytest.fixture(scope="module")
def params():
    shapes = nnx_utils.to_pure_dict(nnx.state(nnx.eval_shape(CONFIG.create, jax.random.key(0))))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes)


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def without(params, path):
    return flax.traverse_util.unflatten_dict({k: v for k, v in flat(params).items() if k != path}, sep="/")


def with_leaf(params, path, leaf):
    return flax.traverse_util.unflatten_dict(flat(params) | {path: leaf}, sep="/")


def test_golden_checkpoint_gives_plain_float32_arrays_with_the_paths_of_the_model():
    restored = flat(_model.restore_params(GOLDEN / "pi0_params", restore_type=np.ndarray))
    assert len(restored) == 50
    assert restored["PaliGemma/llm/layers/attn/q_einsum_1/w"].shape == (3, 4, 32, 16)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in restored.values())


def test_restore_converts_and_places_arrays_on_all_devices():
    restored = _model.restore_params(GOLDEN / "pi0_params", dtype=jnp.bfloat16)
    leaf = restored["action_in_proj"]["kernel"]
    assert isinstance(leaf, jax.Array)
    assert leaf.dtype == jnp.bfloat16
    assert leaf.sharding.is_fully_replicated


def test_params_without_value_keys_are_read_too(tmp_path, params):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", {"params": params})
    restored = _model.restore_params(tmp_path / "params", restore_type=np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_what_is_not_a_checkpoint_is_refused_with_its_path(tmp_path):
    with pytest.raises(errors.MissingFileError, match="nowhere: checkpoint folder not found"):
        _model.restore_params(tmp_path / "nowhere")
    with pytest.raises(
        errors.DataError, match=rf"{tmp_path}: cannot read parameters .*expected an undamaged 'params' folder of a step"
    ):
        _model.restore_params(tmp_path)


def test_a_truncated_checkpoint_is_refused_in_one_line_that_names_the_parameter(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        weights = np.random.default_rng(0).normal(size=5000)
        checkpointer.save(tmp_path / "params", {"params": {"kernel": weights}})
    largest = max((tmp_path / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(errors.DataError, match=r"cannot read parameters .*params\.kernel") as caught:
        _model.restore_params(tmp_path / "params", restore_type=np.ndarray)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_floating_point_numbers_are_refused_by_path_and_type(tmp_path, params):
    # Converted while reading, the whole numbers of a quantised model would pass for weights.
    path = "action_in_proj/kernel"
    quantised = with_leaf(params, path, np.ones(flat(params)[path].shape, np.int8))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", {"params": quantised})
    with pytest.raises(errors.DataError, match=rf"cannot read .*1 parameters are not floating-point: '{path}' is int8"):
        _model.restore_params(tmp_path / "params", dtype=jnp.bfloat16)


def test_load_takes_the_given_values_and_dtypes(params):
    given = with_leaf(params, "action_in_proj/kernel", jnp.full((4, 8), 2.0, jnp.bfloat16))
    model = CONFIG.load(given)
    assert model.action_in_proj.kernel[...].dtype == jnp.bfloat16
    assert (model.action_in_proj.kernel[...] == 2.0).all()
    assert (model.PaliGemma.llm.embedder.input_embedding[...] == np.float32(0.01)).all()


def test_load_leaves_extra_parameters_out_and_logs_their_paths(params, caplog):
    extra = with_leaf(params, "PaliGemma/llm/layers/attn/q_einsum/lora_a", np.zeros((1,)))
    CONFIG.load(extra)
    assert (
        "leaving out 1 parameters that the model does not have: PaliGemma/llm/layers/attn/q_einsum/lora_a"
        in caplog.text
    )
    with pytest.raises(errors.DataError, match="q_einsum/lora_a: found, but not expected"):
        CONFIG.load(extra, remove_extra_params=False)


def test_load_names_every_parameter_that_is_missing_or_of_another_shape(params):
    broken = without(without(params, "state_proj/bias"), "PaliGemma/img/pos_embedding")
    broken = with_leaf(broken, "state_proj/kernel", np.zeros((7, 8), np.float32))
    with pytest.raises(errors.DataError) as caught:
        CONFIG.load(broken)
    for line in (
        "state_proj/bias: expected, but missing",
        "PaliGemma/img/pos_embedding: expected, but missing",
        "state_proj/kernel: shape (7, 8), expected (4, 8)",
    ):
        assert line in str(caught.value)


def test_create_gives_every_leaf_a_finite_value_and_layers_different_ones():
    config = pi0_config.Pi0Config(
        paligemma_variant=gemma.Config(8, 3, 8, 2, 1, 4, 16),
        action_expert_variant=gemma.Config(8, 3, 8, 2, 1, 4, 16),
        pi05=True,
        vision_variant="mu/112",
    )
    state = jax.jit(lambda key: nnx.state(config.create(key)))(jax.random.key(0))
    leaves = flat(nnx_utils.to_pure_dict(state))
    assert all(np.isfinite(leaf).all() for leaf in leaves.values())
    kernels = leaves["PaliGemma/llm/layers/attn/q_einsum_1/w"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    # Fan-in of q_einsum is the width: variance 1 / 8.
    assert 0.2 < kernels.std() < 0.5
