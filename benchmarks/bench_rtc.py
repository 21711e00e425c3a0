"""Compare the cost of real-time chunking with plain sampling.

    python benchmarks/bench_model.py --parts rtc

The table has the FLOPs of a chunk of full-size models, and the times of small ones on the CPU. Nothing full-size is
allocated. `bench_model` sets the platform and counts, and this file has the cases.
"""

from collections.abc import Callable, Iterator
import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import real_time_chunking as rtc
from openpi.shared import nnx_utils
from openpi.training import config as _config

_DELAY, _NUM_LEFT = 6, 25


def models() -> Iterator[tuple[str, pi0_config.Pi0Config]]:
    """Yield the models whose FLOPs are counted."""
    yield "pi0", pi0_config.Pi0Config(rtc_max_delay=10)
    yield "pi0.5", pi0_config.Pi0Config(pi05=True, rtc_max_delay=10)


def small_models() -> Iterator[tuple[str, pi0_config.Pi0Config]]:
    """Yield the models that are timed."""
    debug = dataclasses.replace(_config.get_config("debug_realman").model, rtc_max_delay=10)
    yield "debug_realman", debug
    yield "debug_realman as pi0.5", dataclasses.replace(debug, pi05=True, discrete_state_input=True)


def guidance(model: pi0_config.Pi0Config, method: rtc.Method) -> rtc.Guidance:
    """Return a left-over of zeros for one sample."""
    return rtc.Guidance(
        target=jnp.zeros((1, model.action_horizon, model.action_dim)),
        num_left=jnp.full(1, _NUM_LEFT),
        delay=jnp.full(1, _DELAY),
        schedule=jnp.zeros(1, int),
        max_weight=jnp.full(1, 10.0),
        prior_std=jnp.full(1, 0.2),
        is_used=jnp.arange(model.action_dim)[None] < 14,
        method=method,
    )


def one_step(model: Any, observation: _model.Observation, given: rtc.Guidance | None) -> jax.Array:
    """Sample one chunk in one step."""
    return model.sample_actions(jax.random.key(0), observation, num_steps=1, guidance=given)


def rows(count: Callable[..., float], fill_cache: Callable[..., Any], num_steps: int, repeats: int) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
        count: `count(config, function, *args)` returns the FLOPs of `function(model, *args)`.
        fill_cache: What a model does once per chunk.
        num_steps: Steps of the flow.
        repeats: Timed runs of each small program.
    """
    yield "| model | unit | plain | " + " | ".join(rtc.METHODS) + " |"
    yield "|---|---|---:|" + "---:|" * len(rtc.METHODS)
    for name, config in models():
        observation = config.inputs_spec(batch_size=1)[0]
        once = count(config, fill_cache, observation)
        steps = (count(config, one_step, observation, given) - once for given in _cases(config))
        yield _row(name, "GFLOP", [(once + num_steps * step) / 1e9 for step in steps])
    for name, config in small_models():
        yield _row(name, "ms", times_ms(config, num_steps, repeats))


def times_ms(config: pi0_config.Pi0Config, num_steps: int, repeats: int) -> list[float]:
    """Return the median time of a chunk, plain and with each method.

    They run in turn, so that other work on the machine disturbs all alike.
    """
    model = config.create(jax.random.key(0))
    sampler = nnx_utils.module_jit(model.sample_actions, static_argnames=("num_steps",))
    observation = config.fake_obs(1)
    cases = _cases(config)
    samples: list[list[float]] = [[] for _ in cases]
    for _ in range(1 + repeats):
        for taken, given in zip(samples, cases, strict=True):
            start_s = time.perf_counter()
            jax.block_until_ready(sampler(jax.random.key(0), observation, num_steps=num_steps, guidance=given))
            taken.append(1000 * (time.perf_counter() - start_s))
    # The first run compiles.
    return [statistics.median(taken[1:]) for taken in samples]


def _cases(config: pi0_config.Pi0Config) -> list[rtc.Guidance | None]:
    return [None, *(guidance(config, method) for method in rtc.METHODS)]


def _row(name: str, unit: str, costs: list[float]) -> str:
    plain, *others = costs
    cells = " | ".join(f"{other / plain:.2f} x ({other:.4g})" for other in others)
    return f"| {name} | {unit} | {plain:.4g} | {cells} |"
