"""Four optimization steps, compared with numbers from the original implementation (see golden/README.md)."""

import dataclasses
import functools
import json
import pathlib

from flax import nnx
import flax.traverse_util
import jax
import numpy as np
import pytest

from openpi.models import gemma_config
from openpi.models import lora
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.shared import nnx_utils
from openpi.training import optimizer
from openpi.training.configs.train_config import TrainConfig
from openpi.training.step import train_state
from openpi.training.step import train_step

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NUM_STEPS = 4


def tiny_model(name: str) -> pi0_config.Pi0Config:
    """Return the model of the golden files, with the stand-ins for Gemma 2B and 300M of golden/README.md."""

    def updates(rank: int) -> dict[str, lora.LoRAConfig]:
        return dict.fromkeys(("attn", "ffn"), lora.LoRAConfig(rank=rank, alpha=rank)) if "lora" in name else {}

    size = gemma_config.Config(
        width=64,
        depth=3,
        mlp_dim=128,
        num_heads=4,
        num_kv_heads=1,
        head_dim=16,
        vocab_size=512,
        lora_configs=updates(4),
    )
    fields = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    return pi0_config.Pi0Config(
        **fields
        | {
            "paligemma_variant": size,
            "action_expert_variant": dataclasses.replace(size, width=32, mlp_dim=96, lora_configs=updates(8)),
            "vision_variant": "mu/16",
        }
    )


def golden_batch(name: str) -> tuple[_model.Observation, np.ndarray]:
    arrays = np.load(GOLDEN / f"{name}.npz")
    y, x, c = np.meshgrid(np.arange(224), np.arange(224), np.arange(3), indexing="ij")

    def image(b: int, i: int) -> np.ndarray:
        phase = 0.045 * (y + 1) * (c + 1) + 0.031 * x * (1 + b) + 0.7 * b + 2.1 * i
        return np.floor(127.5 + 127 * np.sin(phase)).astype(np.uint8)

    batch_size = len(arrays["obs/state"])
    observation = _model.Observation.from_dict(
        {
            "image": {
                key: np.stack([image(b, i) for b in range(batch_size)]) for i, key in enumerate(_model.IMAGE_KEYS)
            },
            "image_mask": {key: arrays[f"obs/image_mask/{key}"] for key in _model.IMAGE_KEYS},
            **{key: arrays[f"obs/{key}"] for key in ("state", "tokenized_prompt", "tokenized_prompt_mask")},
        }
    )
    return observation, arrays["actions"]


@functools.cache
def four_steps(name: str) -> tuple[list[dict[str, float]], train_state.TrainState]:
    model_config = tiny_model(name)
    config = TrainConfig(
        name="golden",
        exp_name="golden",
        model=model_config,
        lr_schedule=optimizer.CosineDecaySchedule(warmup_steps=2, peak_lr=1e-3, decay_steps=10, decay_lr=1e-4),
        ema_decay=0.9,
        freeze_filter=model_config.get_freeze_filter(),
    )
    params = _model.restore_params(GOLDEN / f"{name}_params", restore_type=np.ndarray)
    model_def, state_params = nnx.split(model_config.load(jax.tree.map(jax.numpy.asarray, params)))
    state = train_state.create_train_state(config, state_params)
    step = jax.jit(functools.partial(train_step.train_step, config, model_def))
    batch = golden_batch(name)
    history = []
    for _ in range(NUM_STEPS):
        state, info = step(jax.random.key(7), state, batch)
        history.append({key: float(value) for key, value in info.items()})
    return history, state


CASES = [
    "pi0",
    pytest.param("pi05", marks=pytest.mark.slow),
    pytest.param("pi0_lora", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", CASES)
def test_four_steps_have_the_original_loss_and_norms(name):
    wanted = json.loads((GOLDEN / "train_steps.json").read_text())[name]["steps"]
    history, state = four_steps(name)
    assert int(state.step) == NUM_STEPS
    for got, want in zip(history, wanted, strict=True):
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-4)
        np.testing.assert_allclose(got["grad_norm"], want["grad_norm"], rtol=1e-3)
        np.testing.assert_allclose(got["param_norm"], want["param_norm"], rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tree", ["params", "ema"])
def test_after_four_steps_every_leaf_sums_to_the_original(name, tree):
    wanted = json.loads((GOLDEN / "train_steps.json").read_text())[name][tree]
    _, state = four_steps(name)
    flat = flat_leaves(state.params if tree == "params" else state.ema_params)
    undetermined = undetermined_leaves(state)
    assert flat.keys() == wanted.keys()
    for path, (total, absolute) in wanted.items():
        got = np.asarray(flat[path], np.float64)
        tolerance = undetermined.get(path, 1e-4 * absolute)
        for ours, original in ((got.sum(), total), (np.abs(got).sum(), absolute)):
            np.testing.assert_allclose(ours, original, rtol=0, atol=tolerance, err_msg=path)


def flat_leaves(state: nnx.State) -> dict[str, np.ndarray]:
    return flax.traverse_util.flatten_dict(nnx_utils.to_pure_dict(state), sep="/")


def undetermined_leaves(state: train_state.TrainState) -> dict[str, float]:
    """Return leaves whose gradient is zero in exact arithmetic, and how far Adam can move their sum.

    A bias of the keys adds the same number to every logit of a query, which softmax ignores. What is left is rounding
    noise, and Adam scales noise up to full steps. The second moment identifies such leaves, and there are no others.
    """
    noise = {
        path: leaf for path, leaf in flat_leaves(state.opt_state[1][0].nu).items() if 0 < np.sqrt(np.max(leaf)) < 1e-6
    }
    assert all(path.endswith("MultiHeadDotProductAttention_0/key/bias") for path in noise)
    sum_of_rates = 1e-3 * (1 / 3 + 2 / 3 + 1 + 1)
    return {path: leaf.size * sum_of_rates for path, leaf in noise.items()}
