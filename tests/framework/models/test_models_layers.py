"""Properties of the parts of the networks."""

import dataclasses

from flax import nnx
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi.models import flow_time
from openpi.models import gemma
from openpi.models import gemma_layers
from openpi.models import initializers
from openpi.models import lora
from openpi.models import paligemma
from openpi.models import siglip
from openpi.models import stacking
from openpi.shared import nnx_utils

RNG = np.random.default_rng(0)
SIZE = gemma.Config(width=12, depth=2, mlp_dim=20, num_heads=4, num_kv_heads=2, head_dim=6, vocab_size=11)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def filled(create):
    """A module with random parameters; drawn by numpy, because compiling JAX's generators takes seconds."""
    graphdef, state = nnx.split(nnx.eval_shape(create))
    params = jax.tree.map(lambda leaf: 0.3 * draw(*leaf.shape), nnx_utils.to_pure_dict(state))
    nnx_utils.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, (2, 6)), hnp.arrays(bool, (2, 6)))
def test_a_token_sees_its_block_and_earlier_blocks_but_no_padding(valid, starts):
    mask = np.asarray(paligemma.make_attn_mask(jnp.asarray(valid), jnp.asarray(starts)))
    for b, query, key in np.ndindex(mask.shape):
        later_block = starts[b, query + 1 : key + 1].any()
        assert mask[b, query, key] == (not later_block and valid[b, query] and valid[b, key])


def test_block_starts_may_be_shared_by_the_batch():
    valid = jnp.ones((3, 4), dtype=bool)
    shared = paligemma.make_attn_mask(valid, jnp.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(shared, paligemma.make_attn_mask(valid, jnp.tile(jnp.array([0, 0, 1, 1]), (3, 1))))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(-500, 500), st.integers(0, 2**31 - 1))
def test_rotary_products_depend_on_the_distance_alone(i, j, shift, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    shift = max(shift, -min(i, j))

    def product(i, j):
        rotated = (gemma_layers.apply_rope(x, jnp.array([[position]])) for x, position in ((q, i), (k, j)))
        return jnp.vdot(*rotated)

    np.testing.assert_allclose(product(i, j), product(i + shift, j + shift), atol=5e-3)


def test_rotation_keeps_lengths_and_leaves_position_zero_alone():
    x = draw(2, 3, 4, 8)
    positions = jnp.array([[0, 5, 70], [0, 1, 2]])
    rotated = gemma_layers.apply_rope(x, positions)
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


def test_attention_equals_the_plain_formula_with_repeated_kv_heads():
    q = draw(2, 3, 4, 8)
    k, v = draw(2, 2, 5, 2, 8)
    mask = (draw(2, 3, 5) > -0.5).at[:, :, 0].set(True)
    result = gemma_layers.attend(q, k, v, mask)
    for b, t, n in np.ndindex(2, 3, 4):
        logits = jnp.where(mask[b, t], k[b, :, n // 2] @ q[b, t, n], -jnp.inf)
        np.testing.assert_allclose(result[b, t, n], jax.nn.softmax(logits) @ v[b, :, n // 2], atol=1e-5)


def test_a_query_that_sees_nothing_gets_the_mean_and_no_nan():
    q, k, v = draw(3, 1, 4, 1, 8)
    result = gemma_layers.attend(q, k, v, jnp.zeros((1, 4, 4), dtype=bool))
    np.testing.assert_allclose(result[0, :, 0], jnp.broadcast_to(v[0, :, 0].mean(axis=0), (4, 8)), rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_cached_keys_give_the_same_outputs_as_one_pass(fused):
    size = dataclasses.replace(SIZE, num_kv_heads=4) if fused else SIZE
    model = filled(
        lambda: gemma.Module((size, size), embed_dtype="float32", adaptive_norms=(False, True), rngs=nnx.Rngs(0))
    )
    first, second = draw(2, 2, 3, 12)
    cond = [None, draw(2, 12)]
    mask = jnp.tril(jnp.ones((2, 6, 6), dtype=bool))
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    (_, together), _ = model([first, second], positions, mask, adarms_cond=cond)
    _, cache = model([first, None], positions[:, :3], mask[:, :3, :3])
    (none, apart), _ = model([None, second], positions[:, 3:], mask[:, 3:], adarms_cond=cond, kv_cache=cache)
    assert none is None
    np.testing.assert_allclose(apart, together, atol=1e-5)
    name = "qkv_einsum" if fused else "q_einsum"
    assert getattr(model.layers.attn, name).w[...].shape == ((2, 3) if fused else (2,)) + (4, 12, 6)


def test_streams_and_caches_have_the_compute_type_and_parameters_stay_float32():
    model = filled(lambda: gemma.Module((SIZE,), embed_dtype="bfloat16", adaptive_norms=(False,), rngs=nnx.Rngs(0)))
    tokens = model.embed(jnp.array([[1, 2, 3]]))
    (out,), (k, v) = model([tokens], jnp.arange(3)[None], jnp.ones((1, 3, 3), dtype=bool))
    assert {x.dtype for x in (tokens, out, k, v)} == {jnp.dtype("bfloat16")}
    assert k.shape == (2, 1, 3, 2, 6)
    assert model.decode(out).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


def test_an_untrained_adaptive_norm_closes_its_gate_and_norms_plainly():
    adaptive = gemma_layers.RMSNorm(6, adaptive=True, dtype="float32", rngs=nnx.Rngs(0))
    plain = gemma_layers.RMSNorm(6, adaptive=False, dtype="float32", rngs=nnx.Rngs(0))
    x, cond = draw(2, 3, 6), jnp.ones((2, 6))
    normed, gate = adaptive(x, adaptive.modulate(cond))
    np.testing.assert_allclose(normed, plain(x, None)[0], rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(jnp.square(normed), axis=-1), 1.0, rtol=1e-4)
    assert not gate.any()


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_the_image_towers_norm_is_rounded_once(param_dtype):
    """Flax's own norm rounds scale and bias first, on newer releases, and misses a third of these numbers."""
    norm = siglip._LayerNorm(64)
    norm.scale = nnx.Param(jnp.asarray(1 + 0.3 * draw(64), param_dtype))
    norm.bias = nnx.Param(jnp.asarray(0.3 * draw(64), param_dtype))
    x = (3 * draw(2, 50, 64)).astype(jnp.bfloat16)
    exact, scale, bias = (np.asarray(a, np.float64) for a in (x, norm.scale[...], norm.bias[...]))
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6) * scale + bias
    result = norm(x)
    assert result.dtype == jnp.bfloat16
    # The float32 sums may end on the other side of the middle between two bfloat16 numbers, rarely.
    assert np.mean(np.asarray(result) == exact.astype(jnp.bfloat16)) > 0.99


def test_stacked_layers_run_one_after_the_other_and_differ():
    layers = stacking.stack_layers(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 3, nnx.Rngs(0))
    x = jnp.ones((2, 4))
    result, halves = stacking.scan_layers(
        layers, lambda layer, x, factor: (layer(x), factor / 2), x, per_layer=jnp.arange(3.0)
    )
    kernels, biases = layers.kernel[...], layers.bias[...]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    for kernel, bias in zip(kernels, biases, strict=True):
        x = x @ kernel + bias
    np.testing.assert_allclose(result, x, rtol=1e-6)
    np.testing.assert_array_equal(halves, [0.0, 0.5, 1.0])


# eqn, shape of x, shape of w, the update's weight made of A and B
EINSUMS = {
    "queries": ("BTD,NDH->BTNH", (2, 3, 5), (4, 5, 6), "ndl,nlh->ndh"),
    "keys and values": ("BSD,CKDH->CBSKH", (2, 3, 5), (2, 1, 5, 6), "ckdl,cklh->ckdh"),
}


@pytest.mark.parametrize("name", EINSUMS)
@pytest.mark.parametrize("rslora", [False, True])
def test_the_low_rank_update_adds_the_scaled_product_of_a_and_b_to_the_weight(name, rslora):
    eqn, x_shape, shape, product = EINSUMS[name]
    config = lora.LoRAConfig(rank=2, alpha=3.0, rslora=rslora)
    layer = filled(lambda: lora.Einsum(shape, init=initializers.zeros, lora_config=config, rngs=nnx.Rngs(0)))
    x = draw(*x_shape)
    update = jnp.einsum(product, layer.lora_a[...], layer.lora_b[...])
    weight = layer.w[...] + (3 / 2**0.5 if rslora else 3 / 2) * update
    np.testing.assert_allclose(layer(eqn, x), jnp.einsum(eqn, x, weight), atol=1e-5)


def test_the_update_of_the_attention_output_sums_the_heads_in_a_and_in_b():
    """Published LoRA weights were trained with this, so that the heads mix."""
    config = lora.LoRAConfig(rank=2, alpha=2.0)
    layer = filled(lambda: lora.Einsum((4, 6, 5), init=initializers.zeros, lora_config=config, rngs=nnx.Rngs(0)))
    x = draw(2, 3, 4, 6)
    update = jnp.einsum("btnh,nhl->btl", x, layer.lora_a[...]) @ layer.lora_b[...].sum(axis=0)
    expected = jnp.einsum("btnh,nhd->btd", x, layer.w[...]) + update
    np.testing.assert_allclose(layer("BTNH,NHD->BTD", x), expected, atol=1e-5)


def test_fresh_lora_weights_change_nothing_and_trained_ones_do():
    def create(config):
        return lora.FeedForward(6, 8, lora_config=config, rngs=nnx.Rngs(0))

    config, x = lora.LoRAConfig(rank=2), draw(2, 3, 6)
    base, fresh, trained = filled(lambda: create(None)), create(config), filled(lambda: create(config))
    for model in (fresh, trained):
        model.gating_einsum, model.linear = base.gating_einsum, base.linear
    np.testing.assert_array_equal(fresh(x), base(x))
    assert np.abs(trained(x) - base(x)).max() > 1e-2


def test_time_embedding_has_the_shortest_and_the_longest_period():
    time = jnp.array([0.0, 0.3, 1.0])
    embedding = flow_time.posemb_sincos(time, 8, min_period=4e-3, max_period=4.0)
    np.testing.assert_allclose(embedding[:, 3], jnp.sin(2 * jnp.pi * time / 4.0), atol=1e-6)
    np.testing.assert_allclose(embedding[:, 4], jnp.cos(2 * jnp.pi * time / 4e-3), atol=1e-3)
    with pytest.raises(ValueError, match="embedding_dim 7, expected an even number"):
        flow_time.posemb_sincos(time, 7, min_period=4e-3, max_period=4.0)
