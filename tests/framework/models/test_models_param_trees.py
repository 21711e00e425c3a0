"""Parameter trees and freeze filters of the registered variants, against the manifest of the original."""

import json
import pathlib

from flax import nnx
import flax.traverse_util
import jax
import pytest

from openpi.models import gemma
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import pi0_fast
from openpi.models import siglip
from openpi.shared import errors
from openpi.shared import nnx_utils

TREES = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "param_trees.json").read_text())
MANIFESTS = {name: tree for name, tree in TREES.items() if "error" not in tree}


def config_of(manifest):
    variants = {key: manifest["config"][key] for key in manifest["config"] if key.endswith("_variant")}
    if "pi05" not in manifest["config"]:
        return pi0_fast.Pi0FASTConfig(**variants)
    return pi0_config.Pi0Config(**variants, pi05=manifest["config"]["pi05"] == "True")


def leaves(state):
    return flax.traverse_util.flatten_dict(nnx_utils.to_pure_dict(state), sep="/")


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_parameter_has_the_path_shape_and_dtype_of_the_original(name):
    model = nnx.eval_shape(config_of(MANIFESTS[name]).create, jax.random.key(0))
    got = {path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in leaves(nnx.state(model)).items()}
    assert got == {entry["path"]: (entry["shape"], entry["dtype"]) for entry in MANIFESTS[name]["params"]}
    assert len(leaves(nnx.state(model, nnx.Param))) == MANIFESTS[name]["n_leaves"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_lora_freezes_the_parameters_that_the_original_freezes(name):
    config = config_of(MANIFESTS[name])
    frozen = leaves(nnx.state(nnx.eval_shape(config.create, jax.random.key(0)), config.get_freeze_filter()))
    assert set(frozen) == {entry["path"] for entry in MANIFESTS[name]["params"] if entry["frozen_by_default_filter"]}


@pytest.mark.parametrize(
    ("paligemma", "expert", "pi05", "count"),
    [
        ("gemma_2b", "gemma_300m", False, 0),
        ("gemma_2b_lora", "gemma_300m", False, 9),
        ("gemma_2b_lora", "gemma_300m", True, 9),
        ("gemma_2b", "gemma_300m_lora", False, 8),
        ("gemma_2b", "gemma_300m_lora", True, 11),
        ("gemma_2b_lora", "gemma_300m_lora", False, 17),
        ("gemma_2b_lora", "gemma_300m_lora", True, 20),
    ],
)
def test_lora_of_one_expert_freezes_that_expert_alone(paligemma, expert, pi05, count):
    config = pi0_config.Pi0Config(paligemma_variant=paligemma, action_expert_variant=expert, pi05=pi05)
    frozen = leaves(nnx.state(nnx.eval_shape(config.create, jax.random.key(0)), config.get_freeze_filter()))
    assert len(frozen) == count
    assert not any("lora" in path or "img" in path for path in frozen)


@pytest.mark.parametrize("name", MANIFESTS)
def test_config_fields_have_the_defaults_of_the_original(name):
    config = config_of(MANIFESTS[name])
    assert {key: str(getattr(config, key)) for key in MANIFESTS[name]["config"]} == MANIFESTS[name]["config"]


def test_model_types_and_the_defaults_that_follow_from_pi05():
    assert pi0_config.Pi0Config().model_type is _model.ModelType.PI0
    assert pi0_config.Pi0Config(pi05=True).model_type is _model.ModelType.PI05
    assert pi0_fast.Pi0FASTConfig().model_type is _model.ModelType.PI0_FAST
    assert pi0_config.Pi0Config(pi05=True, max_token_len=60, discrete_state_input=False).max_token_len == 60
    assert pi0_config.Pi0Config(pi05=True, discrete_state_input=False).discrete_state_input is False


def test_configs_compare_and_hash_by_value():
    sizes = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
    one, same = (pi0_config.Pi0Config(paligemma_variant=gemma.Config(**sizes)) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != pi0_config.Pi0Config(paligemma_variant=gemma.Config(**sizes | {"width": 16}))


def test_unknown_sizes_are_refused_with_the_known_ones():
    with pytest.raises(errors.ConfigError, match=r"'gemma_2b_lore' not found\. Did you mean 'gemma_2b_lora'"):
        gemma.get_config("gemma_2b_lore")
    for name in ("So400m", "huge/14", "mu/0", "mu/x"):
        with pytest.raises(errors.ConfigError, match=f"found '{name}', expected '<size>/<patch px>'.*So400m"):
            siglip.get_config(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3, "num_kv_heads": 2}, "3 heads cannot share 2 kv heads"),
        ({"head_dim": 5}, "head_dim 5, expected an even number"),
        ({"lora_configs": {"mlp": None}}, r"lora_configs has \['mlp'\]"),
    ],
)
def test_sizes_that_cannot_work_are_refused(change, message):
    sizes = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
    with pytest.raises(errors.ConfigError, match=message):
        gemma.Config(**sizes | change)


def test_experts_of_different_depth_are_refused():
    config = pi0_config.Pi0Config(paligemma_variant="dummy", action_expert_variant="gemma_300m")
    with pytest.raises(errors.ConfigError, match=r"experts must share 'depth', found \[4, 18\]"):
        nnx.eval_shape(config.create, jax.random.key(0))
