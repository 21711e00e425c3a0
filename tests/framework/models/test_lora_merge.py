"""Adapters (LoRA) folded into the weights that they change, one weight at a time; `test_bundle` merges whole models."""

import dataclasses

import numpy as np
import pytest

from openpi.models import gemma_config
from openpi.models import lora
from openpi.models import lora_merge
from openpi.models import pi0_config
from openpi.shared.errors import DataError

SIZE = gemma_config.Config(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512)


@pytest.mark.parametrize("variant", ["gemma_2b_lora", "gemma_300m_lora"])
def test_registered_variants_without_adapters_are_the_registered_ones(variant):
    config = pi0_config.Pi0Config(paligemma_variant=variant)
    plain = lora_merge.without_adapters(config)
    assert plain.paligemma_variant == variant.removesuffix("_lora")
    assert lora_merge.without_adapters(plain) == plain


def test_a_difference_as_large_as_a_part_of_what_adapters_do_is_not_good():
    check = lora_merge.Check(difference=1e-5, effect=0.5, largest_output=2.0)
    assert check.is_good
    for difference in (0.1, float("nan")):
        assert not dataclasses.replace(check, difference=difference).is_good


@pytest.mark.parametrize(
    ("name", "eqn", "shape"),
    [
        ("q_einsum", "BTD,NDH->BTNH", (4, 6, 5)),
        ("kv_einsum_1", "BSD,CKDH->CBSKH", (2, 1, 6, 5)),
        ("attn_vec_einsum_1", "BTNH,NHD->BTD", (4, 5, 6)),
    ],
)
def test_a_merged_weight_does_what_weight_and_adapter_did(name, eqn, shape):
    rng = np.random.default_rng(0)
    strengths = (lora.LoRAConfig(rank=2, alpha=3.0), lora.LoRAConfig(rank=2, alpha=0.5, rslora=True))
    sizes = [dataclasses.replace(SIZE, lora_configs={"attn": strength}) for strength in strengths]
    config = pi0_config.Pi0Config(paligemma_variant=sizes[0], action_expert_variant=sizes[1])
    parts = {"w": shape, "lora_a": (*shape[:-1], 2), "lora_b": (*shape[:-2], 2, shape[-1])}
    w, a, b = (rng.standard_normal(part).astype(np.float32) for part in parts.values())
    # In a model the layers lie on the first axis.
    stacked = {key: leaf[None] for key, leaf in zip(parts, (w, a, b), strict=True)}
    merged = lora_merge.merge({"llm": {"layers": {"attn": {name: stacked}}}}, config)["llm"]["layers"]["attn"][name]
    assert set(merged) == {"w"}
    sizes_of = dict(zip(eqn.split("->")[0].split(",")[1], shape, strict=True)) | {"B": 2, "T": 3, "S": 3}
    x = rng.standard_normal([sizes_of[label] for label in eqn.split(",")[0]]).astype(np.float32)
    eqn_a, eqn_b = lora.lora_equations(eqn)
    update = np.einsum(eqn_b, np.einsum(eqn_a, x, a), b)
    expected = np.einsum(eqn, x, w) + strengths[name.endswith("_1")].scale * update
    np.testing.assert_allclose(np.einsum(eqn, x, merged["w"][0]), expected, rtol=1e-4, atol=1e-4)


def test_adapters_that_cannot_be_placed_are_named():
    config = pi0_config.Pi0Config(
        paligemma_variant=dataclasses.replace(SIZE, lora_configs={"attn": lora.LoRAConfig(2)})
    )
    w, a, b = np.zeros((1, 6, 5)), np.zeros((1, 6, 2)), np.zeros((1, 2, 5))
    with pytest.raises(DataError, match="'attn/q_einsum/lora_b' is missing"):
        lora_merge.merge({"attn": {"q_einsum": {"w": w, "lora_a": a}}}, config)
    with pytest.raises(DataError, match="found an adapter of 'llm/mlp/linear', but the config has no adapter for it"):
        lora_merge.merge({"llm": {"mlp": {"linear": w, "linear_lora_a": a, "linear_lora_b": b}}}, config)
