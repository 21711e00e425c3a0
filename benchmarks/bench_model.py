"""Compile time, run time, peak memory and FLOPs of one training step and of sampling an action chunk, on the CPU.

    python benchmarks/bench_model.py            # So400m image tower with dummy experts, ten minutes, 11 GiB
    python benchmarks/bench_model.py --flops    # what saved work saves; full-size models too, nothing is allocated

FLOPs are XLA's cost analysis of the lowered program with all loops unrolled (it counts the body of a loop once).
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import json
import os
import re
import resource
import subprocess
import sys
import time
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"

from flax import nnx
import flax.traverse_util
import jax
import jax.numpy as jnp
import tyro

from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models.pi0 import Pi0
from openpi.shared import nnx_utils
from openpi.training import train_state
from openpi.training import train_step
from openpi.training.train_config import TrainConfig

NUM_STEPS = 10
REPEATS = 3


@dataclasses.dataclass
class Args:
    """What to measure."""

    # Count FLOPs instead of timing.
    flops: bool = False
    # One timed case as JSON, in this process: "train" or "sample", then the type of the activations.
    case: tuple[str, str] | None = None


def bench_config(dtype: str) -> pi0_config.Pi0Config:
    """Return pi0.5 with the full image tower and dummy experts."""
    return pi0_config.Pi0Config(
        pi05=True, dtype=dtype, paligemma_variant="dummy", action_expert_variant="dummy", action_dim=14
    )


# ---------------------------------------------------------------------------------------------------------------------
# Time and memory.


def measure(kind: str, dtype: str) -> dict[str, Any]:
    """Compile and run one program; the first run is not timed."""
    build = {"train": build_train_step, "sample": build_sampling}[kind]
    function, args = build(bench_config(dtype))
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    compile_s = time.perf_counter() - start
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"compile_s": compile_s, "run_s": min(times[1:]), "peak_mib": peak_mib}


def build_train_step(model: pi0_config.Pi0Config) -> tuple[Any, tuple]:
    """One step of AdamW on one sample; float32 parameters, no averaging."""
    config = TrainConfig(name="bench", exp_name="bench", model=model, ema_decay=None)
    model_def, params = nnx.split(jax.jit(lambda key: model.create(key))(jax.random.key(0)))
    state = train_state.create_train_state(config, params)
    step = jax.jit(functools.partial(train_step.train_step, config, model_def))
    return step, (jax.random.key(0), state, (model.fake_obs(1), model.fake_act(1)))


def build_sampling(model: pi0_config.Pi0Config) -> tuple[Any, tuple]:
    """One chunk of actions; parameters in the type of the activations, as a server holds them."""
    model_def, params = nnx.split(jax.jit(lambda key: model.create(key))(jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf.astype(model.dtype), params)
    return sampling(model_def), (params, model.fake_obs(1))


def sampling(model_def: nnx.GraphDef) -> Any:
    """Jit the sampling of a model given as structure and parameters."""

    def sample(params: nnx.State, observation: _model.Observation) -> jax.Array:
        return nnx.merge(model_def, params).sample_actions(jax.random.key(0), observation, num_steps=NUM_STEPS)

    return jax.jit(sample)


def print_times() -> None:
    """Measure every case in a process of its own, so that its peak of memory is its own."""
    print("| program | activations | compile s | run s | peak memory MiB |\n|---|---|---:|---:|---:|")
    for kind in ("sample", "train"):
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, __file__, "--case", kind, dtype]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            figures = f"{row['compile_s']:.1f} | {row['run_s']:.2f} | {row['peak_mib']:.0f}"
            print(f"| {kind} | {dtype} | {figures} |", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs.


@contextlib.contextmanager
def unrolled_loops() -> Iterator[None]:
    """Write every scan out, so that the cost analysis sees all its rounds."""
    with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True)):
        yield


def count(model: pi0_config.Pi0Config, function: Callable[..., Any], *args: Any) -> float:
    """Return the FLOPs of `function(model, *args)`, without allocating the model or the arguments."""
    model_def, params = nnx.split(nnx.eval_shape(model.create, jax.random.key(0)))
    with unrolled_loops():
        lowered = jax.jit(lambda params, *args: function(nnx.merge(model_def, params), *args)).lower(params, *args)
    return lowered.cost_analysis()["flops"]


def fill_cache(model: Pi0, observation: _model.Observation) -> Any:
    """What happens once: images and prompt."""
    return model._fill_cache(_model.preprocess_observation(None, observation))


def abstract_suffix_inputs(model: pi0_config.Pi0Config, observation: _model.Observation) -> tuple[Any, Any, Any]:
    """Return the shapes of what a step needs: condition, which keys are valid, and the cache."""
    model_def, params = nnx.split(nnx.eval_shape(model.create, jax.random.key(0)))

    def inputs(params: nnx.State, observation: _model.Observation, time: jax.Array) -> tuple[Any, Any, Any]:
        module = nnx.merge(model_def, params)
        return module._condition(time), *fill_cache(module, observation)

    return jax.eval_shape(inputs, params, observation, jax.ShapeDtypeStruct((), jnp.float32))


def time_weights_mb(config: pi0_config.Pi0Config) -> float:
    """Return the size of the weights that only the time goes through (pi0.5), in bfloat16."""
    params = nnx_utils.to_pure_dict(nnx.state(nnx.eval_shape(config.create, jax.random.key(0))))
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return sum(2 * leaf.size for path, leaf in flat.items() if re.search("norm_1/Dense_0|time_mlp", path)) / 1e6


def flops_rows(name: str, config: pi0_config.Pi0Config) -> Iterator[str]:
    """Give a table row per saving, for one chunk of one sample."""
    observation, actions = config.inputs_spec(batch_size=1)
    two = observation.replace(images=dict(list(observation.images.items())[:2]))
    once, once_two = count(config, fill_cache, observation), count(config, fill_cache, two)
    time_row = count(config, Pi0._condition, jax.ShapeDtypeStruct((), jnp.float32))
    # pi0 had the time beside every action in the input of its first action layer.
    rows_before = NUM_STEPS * (1 if config.pi05 else config.action_horizon)
    steps = NUM_STEPS * count(
        config, Pi0._predict_cached, observation, actions, *abstract_suffix_inputs(config, observation)
    )
    before = once + steps + rows_before * time_row

    def row(what: str, unit: str, before: float, after: float) -> str:
        return f"| {name} | {what} | {unit} | {before:.4g} | {after:.4g} | {after / before:.1%} |"

    after_time = NUM_STEPS * time_row
    yield row("images and prompt, the third camera slot never filled", "GFLOP", once / 1e9, once_two / 1e9)
    if config.pi05:
        # As many products, but the weights, a quarter of the action expert's, pass through the processor once.
        weights = time_weights_mb(config)
        yield row("weights read for the time, bfloat16", "MB", NUM_STEPS * weights, weights)
    else:
        yield row("time of the 10 steps", "MFLOP", rows_before * time_row / 1e6, after_time / 1e6)
    yield row("whole chunk, three cameras", "GFLOP", before / 1e9, (once + steps + after_time) / 1e9)
    yield row("whole chunk, two cameras", "GFLOP", before / 1e9, (once_two + steps + after_time) / 1e9)


def print_flops() -> None:
    """Print the table of savings."""
    print("| model | part | unit | before | after | left |\n|---|---|---|---:|---:|---:|")
    for name, config in (
        ("So400m, dummy experts", bench_config("bfloat16")),
        ("pi0", pi0_config.Pi0Config()),
        ("pi0.5", pi0_config.Pi0Config(pi05=True)),
    ):
        for line in flops_rows(name, config):
            print(line, flush=True)


def main(args: Args) -> None:
    """Print what was asked for."""
    if args.case is not None:
        print(json.dumps(measure(*args.case)))
    elif args.flops:
        print_flops()
    else:
        print_times()


if __name__ == "__main__":
    main(tyro.cli(Args))
