"""Measure time, memory and FLOPs of training and sampling on the CPU.

    python benchmarks/bench_model.py                                         # Ten minutes, 11 GiB.
    python benchmarks/bench_model.py --parts flops                           # Nothing is allocated.
    python benchmarks/bench_model.py --parts rtc                             # Real-time chunking, see bench_rtc.py.
    python benchmarks/bench_model.py --parts times --vision-variant mu/16    # Small, to try it out.

The first table shows how much each saving of work saves, also for full-size models. The second table times one
training step and the sampling of one action chunk: compile time, run time and peak memory of the image tower with
dummy experts. FLOPs come from XLA's cost analysis of the lowered program with all loops unrolled, because it counts
the body of a loop once.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
from typing import Any, Literal
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"

import bench_rtc
from flax import nnx
import flax.traverse_util
import jax
import jax.numpy as jnp
import tyro

from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models.pi0 import Pi0
from openpi.policies import program_shapes
from openpi.shared import nnx_utils
from openpi.training.configs.train_config import TrainConfig
from openpi.training.step import train_state
from openpi.training.step import train_step

# Tokens of a short instruction such as "fold the towel", with its beginning and end.
SHORT_PROMPT = 8


@dataclasses.dataclass
class Args:
    """What to measure, and how large."""

    # Tables to print.
    parts: tuple[Literal["flops", "times", "rtc"], ...] = ("flops", "times", "rtc")
    # Image tower of the timed model, whose experts are dummies.
    vision_variant: str = "So400m/14"
    # Steps of the flow.
    num_steps: int = 10
    # Timed runs of each program. The best one counts.
    repeats: int = 3
    # Also write the tables to this file.
    out: pathlib.Path | None = None
    # Time one case in this process and print it as JSON: "train" or "sample", then the type of the activations.
    case: tuple[str, str] | None = None


def bench_config(dtype: str, vision_variant: str) -> pi0_config.Pi0Config:
    """Return pi0.5 with dummy experts."""
    return pi0_config.Pi0Config(
        pi05=True,
        dtype=dtype,
        vision_variant=vision_variant,
        paligemma_variant="dummy",
        action_expert_variant="dummy",
        action_dim=14,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Time and memory.


def measure(kind: str, dtype: str, args: Args) -> dict[str, Any]:
    """Compile and run one program. The first run is not timed."""
    config = bench_config(dtype, args.vision_variant)
    function, inputs = build_train_step(config) if kind == "train" else build_sampling(config, args.num_steps)
    start = time.perf_counter()
    compiled = function.lower(*inputs).compile()
    compile_s = time.perf_counter() - start
    times = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        times.append(time.perf_counter() - start)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"compile_s": compile_s, "run_s": min(times[1:]), "peak_mib": peak_mib}


def build_train_step(model: pi0_config.Pi0Config) -> tuple[Any, tuple]:
    """Return one training step and its inputs.

    It is AdamW on one sample with float32 parameters and no averaging.
    """
    config = TrainConfig(name="bench", exp_name="bench", model=model, ema_decay=None)
    model_def, params = nnx.split(jax.jit(lambda key: model.create(key))(jax.random.key(0)))
    state = train_state.create_train_state(config, params)
    step = jax.jit(functools.partial(train_step.train_step, config, model_def))
    return step, (jax.random.key(0), state, (model.fake_obs(1), model.fake_act(1)))


def build_sampling(model: pi0_config.Pi0Config, num_steps: int) -> tuple[Any, tuple]:
    """Return the sampling of one chunk and its inputs.

    Parameters have the type of the activations, as in a server.
    """
    model_def, params = nnx.split(jax.jit(lambda key: model.create(key))(jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf.astype(model.dtype), params)
    return sampling(model_def, num_steps), (params, model.fake_obs(1))


def sampling(model_def: nnx.GraphDef, num_steps: int) -> Any:
    """Return a model's jitted sampling as a function of its parameters."""

    def sample(params: nnx.State, observation: _model.Observation) -> jax.Array:
        return nnx.merge(model_def, params).sample_actions(jax.random.key(0), observation, num_steps=num_steps)

    return jax.jit(sample)


def time_rows(args: Args) -> Iterator[str]:
    """Measure every case and yield the rows of the table.

    Each case has a process of its own, and so a peak of memory of its own.
    """
    yield "| program | activations | compile s | run s | peak memory MiB |"
    yield "|---|---|---:|---:|---:|"
    size = ["--vision-variant", args.vision_variant, "--num-steps", str(args.num_steps), "--repeats", str(args.repeats)]
    for kind in ("sample", "train"):
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, __file__, *size, "--case", kind, dtype]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            figures = f"{row['compile_s']:.1f} | {row['run_s']:.2f} | {row['peak_mib']:.0f}"
            yield f"| {kind} | {dtype} | {figures} |"


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs.


@contextlib.contextmanager
def unrolled_loops() -> Iterator[None]:
    """Unroll every scan, so that the cost analysis sees all its rounds."""
    with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True)):
        yield


def count(model: pi0_config.Pi0Config, function: Callable[..., Any], *args: Any) -> float:
    """Return the FLOPs of `function(model, *args)`.

    Neither the model nor the arguments are allocated.
    """
    model_def, params = nnx.split(nnx.eval_shape(model.create, jax.random.key(0)))
    with unrolled_loops():
        lowered = jax.jit(lambda params, *args: function(nnx.merge(model_def, params), *args)).lower(params, *args)
    return lowered.cost_analysis()["flops"]


def fill_cache(model: Pi0, observation: _model.Observation) -> Any:
    """Run the part that happens once per chunk: images and prompt."""
    return model._fill_cache(_model.preprocess_observation(None, observation))


def abstract_suffix_inputs(model: pi0_config.Pi0Config, observation: _model.Observation) -> tuple[Any, Any, Any]:
    """Return the shapes of a step's inputs.

    These are the condition, which keys are valid, and the cache.
    """
    model_def, params = nnx.split(nnx.eval_shape(model.create, jax.random.key(0)))

    def inputs(params: nnx.State, observation: _model.Observation, time: jax.Array) -> tuple[Any, Any, Any]:
        module = nnx.merge(model_def, params)
        return module._condition(time), *fill_cache(module, observation)

    return jax.eval_shape(inputs, params, observation, jax.ShapeDtypeStruct((), jnp.float32))


def time_weights_mb(config: pi0_config.Pi0Config) -> float:
    """Return the size of the weights that only the time uses (pi0.5).

    In MB, as bfloat16.
    """
    params = nnx_utils.to_pure_dict(nnx.state(nnx.eval_shape(config.create, jax.random.key(0))))
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return sum(2 * leaf.size for path, leaf in flat.items() if re.search("norm_1/Dense_0|time_mlp", path)) / 1e6


def chunk_parts(config: pi0_config.Pi0Config, observation: _model.Observation) -> tuple[float, float]:
    """Return the FLOPs of what happens once, and of one step.

    The step is counted without its time.
    """
    once = count(config, fill_cache, observation)
    actions = config.inputs_spec(batch_size=1)[1]
    step = count(config, Pi0._predict_cached, observation, actions, *abstract_suffix_inputs(config, observation))
    return once, step


def smaller(observation: _model.Observation, *, num_images: int, prompt_tokens: int) -> _model.Observation:
    """Return the shapes that a server computes.

    They depend on the number of cameras and the length of the prompt.
    """
    length = program_shapes.prompt_length(observation.tokenized_prompt.shape[1], prompt_tokens)
    fields = ("tokenized_prompt", "tokenized_prompt_mask")
    tokens = {field: jax.ShapeDtypeStruct((1, length), getattr(observation, field).dtype) for field in fields}
    return observation.replace(images=dict(list(observation.images.items())[:num_images]), **tokens)


def flops_rows(name: str, config: pi0_config.Pi0Config, num_steps: int) -> Iterator[str]:
    """Yield a table row per saving, for one chunk of one sample."""
    whole = config.inputs_spec(batch_size=1)[0]
    longest = config.max_token_len
    two = chunk_parts(config, smaller(whole, num_images=2, prompt_tokens=longest))
    short = chunk_parts(config, smaller(whole, num_images=3, prompt_tokens=SHORT_PROMPT))
    both = chunk_parts(config, smaller(whole, num_images=2, prompt_tokens=SHORT_PROMPT))
    whole = chunk_parts(config, whole)
    time_row = count(config, Pi0._condition, jax.ShapeDtypeStruct((), jnp.float32))
    # The original pi0 had the time next to every action in the input of its first action layer.
    times_before = num_steps * (1 if config.pi05 else config.action_horizon) * time_row
    times_after = num_steps * time_row

    def row(what: str, unit: str, before: float, after: float) -> str:
        return f"| {after / before:.1%} | {name} | {what} | {unit} | {before:.4g} | {after:.4g} |"

    def chunk(parts: tuple[float, float], times: float) -> float:
        return (parts[0] + num_steps * parts[1] + times) / 1e9

    computed = program_shapes.prompt_length(longest, SHORT_PROMPT)
    yield row("images and prompt, two cameras for three slots", "GFLOP", whole[0] / 1e9, two[0] / 1e9)
    prompt = f"images and prompt, {SHORT_PROMPT} tokens: {computed} computed instead of {longest}"
    yield row(prompt, "GFLOP", whole[0] / 1e9, short[0] / 1e9)
    if config.pi05:
        # The number of products is the same, but the weights, a quarter of the action expert's, are read only once.
        weights = time_weights_mb(config)
        yield row("weights read for the time, bfloat16", "MB", num_steps * weights, weights)
    else:
        yield row(f"time of the {num_steps} steps", "MFLOP", times_before / 1e6, times_after / 1e6)
    before = chunk(whole, times_before)
    yield row(f"whole chunk, three cameras, {SHORT_PROMPT} tokens", "GFLOP", before, chunk(short, times_after))
    yield row(f"whole chunk, two cameras, {SHORT_PROMPT} tokens", "GFLOP", before, chunk(both, times_after))


def all_flops_rows(args: Args) -> Iterator[str]:
    """Yield the rows of the table of savings."""
    yield "| left | model | part | unit | before | after |"
    yield "|---:|---|---|---|---:|---:|"
    for name, config in (
        (f"{args.vision_variant}, dummy experts", bench_config("bfloat16", args.vision_variant)),
        ("pi0", pi0_config.Pi0Config()),
        ("pi0.5", pi0_config.Pi0Config(pi05=True)),
    ):
        yield from flops_rows(name, config, args.num_steps)


def rtc_rows(args: Args) -> Iterator[str]:
    """Yield the rows of the table of real-time chunking."""
    return bench_rtc.rows(count, fill_cache, args.num_steps, args.repeats)


def main(args: Args) -> None:
    """Print the tables that were asked for."""
    if args.case is not None:
        print(json.dumps(measure(*args.case, args)))
        return
    lines = []
    for part in args.parts:
        for line in {"flops": all_flops_rows, "times": time_rows, "rtc": rtc_rows}[part](args):
            print(line, flush=True)
            lines.append(line)
        print()
        lines.append("")
    if args.out is not None:
        args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Args))
