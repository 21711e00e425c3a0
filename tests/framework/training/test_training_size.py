"""Large batches in parts, rematerialization, frozen parts, and the memory of all of them."""

import contextlib
import dataclasses
import functools
import json
import shutil
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from openpi.models import stacking
from openpi.shared import errors
from openpi.training import config as _config
from openpi.training import sharding
from openpi.training.configs.mixture import MixedDataset
from openpi.training.host import host_memory
from openpi.training.memory import budget as memory
from openpi.training.run import run_start
from openpi.training.run import train_loop
from openpi.training.stats import norm_stats
from openpi.training.step import step_program
from openpi.training.step import train_state
from openpi.training.step import train_step

GIB = 2**30


@pytest.fixture(scope="module")
def config(tiny_model):
    """Return a config with the model option that draws most random numbers per batch."""
    model = dataclasses.replace(tiny_model, rtc_max_delay=3)
    return dataclasses.replace(_config.get_config("debug"), model=model, batch_size=4, ema_decay=None)


@pytest.fixture(scope="module")
def take_step(config):
    """Return a function that takes one step with changed fields and returns scalars and state."""
    batch = (config.model.fake_obs(4), config.model.fake_act(4) * np.linspace(-1, 1, 4)[:, None, None])

    def take(**changes):
        changed = dataclasses.replace(config, **changes)
        state = train_state.init_train_state(changed, jax.random.key(0), sharding.make_mesh(1))
        step = jax.jit(functools.partial(train_step.train_step, changed, train_state.model_definition(changed)))
        state, info = step(jax.random.key(1), state, batch)
        return {key: float(value) for key, value in info.items()}, state

    return take


@pytest.fixture(scope="module")
def whole(take_step):
    return take_step()


def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(take_step, whole):
    """Noise, times and augmentation are drawn for the whole batch. Otherwise the losses would differ by some percent."""
    parts, state = take_step(grad_accumulation=2)
    for key, value in whole[0].items():
        np.testing.assert_allclose(parts[key], value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole[1].params), strict=True):
        # The first step of Adam is +-lr even where a gradient is nearly zero.
        np.testing.assert_allclose(a, b, atol=2.1 * 2.5e-8)


@pytest.mark.slow
@pytest.mark.parametrize("max_delay", [0, 3])
def test_a_run_over_a_mixture_has_the_same_losses_in_parts(home, tiny_model, max_delay):
    shutil.copytree(home / "data/lerobot/realman/dual_arm", home / "data/lerobot/realman/other")
    base = _config.get_config("debug_realman")
    mixture = (MixedDataset("realman/dual_arm", 2.0), MixedDataset("realman/other", 1.0, "do it twice"))
    model = dataclasses.replace(tiny_model, rtc_max_delay=max_delay)
    data = dataclasses.replace(base.data, mixture=mixture)
    whole = dataclasses.replace(
        base, model=model, data=data, batch_size=4, num_train_steps=3, log_interval=1, checkpoint_base_dir=str(home)
    )
    norm_stats.compute_norm_stats(whole)

    def losses(config):
        log = train_loop.train(config).checkpoint.parent / "train_log.jsonl"
        return [json.loads(line)["loss"] for line in log.read_text().splitlines()]

    expected = losses(whole)
    assert len(set(expected)) == 3
    parts = dataclasses.replace(whole, grad_accumulation=2, exp_name="parts")
    np.testing.assert_allclose(losses(parts), expected, rtol=1e-5)


def test_the_loss_of_a_part_is_that_of_its_rows(config):
    model = config.model.create(jax.random.key(0))
    inputs = model.draw_loss_inputs(jax.random.key(1), config.model.fake_obs(4), config.model.fake_act(4), train=True)
    part = model.loss_of_inputs(jax.tree.map(lambda leaf: leaf[1:3], inputs))
    np.testing.assert_allclose(part, model.loss_of_inputs(inputs)[1:3], rtol=1e-5)


def test_rematerialization_changes_only_memory():
    layers = stacking.stack_layers(lambda rngs: nnx.Linear(16, 16, rngs=rngs), 8, nnx.Rngs(0))
    graphdef, weights = nnx.split(layers)
    x = np.linspace(-1, 1, 512 * 16, dtype=np.float32).reshape(512, 16)

    def loss(weights, x):
        def step(layer, x, _):
            return jnp.tanh(jnp.sin(jnp.exp(jnp.sin(layer(x))))), None

        return stacking.scan_layers(nnx.merge(graphdef, weights), step, x)[0].sum()

    def compiled(remat):
        with stacking.set_remat(remat):
            return jax.jit(jax.grad(loss)).lower(weights, x).compile()

    programs = {remat: compiled(remat) for remat in ("full", "dots", "none")}
    sizes = {remat: program.memory_analysis().temp_size_in_bytes for remat, program in programs.items()}
    assert sizes["full"] < sizes["dots"] < sizes["none"]
    expected = programs["full"](weights, x)
    for remat in ("dots", "none"):
        for a, b in zip(jax.tree.leaves(programs[remat](weights, x)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_frozen_image_tower_has_no_optimizer_state(take_step):
    _, state = take_step(freeze_image_tower=True)
    moments = state.opt_state[1][0].mu["PaliGemma"]
    assert "img" not in moments
    assert "llm" in moments
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params["PaliGemma"]["img"])} == {jnp.dtype("bfloat16")}


def test_the_image_tower_can_be_frozen_in_addition_to_what_adapters_replace():
    config = dataclasses.replace(_config.get_config("pi0_realman_lora"), freeze_image_tower=True)
    need, whole = (
        memory.training_need(each, sharding.make_mesh(1)) for each in (config, _config.get_config("pi0_realman_lora"))
    )
    # 412 M parameters of the tower: half the bytes each, no two moments, no gradient.
    saved = {name: (whole.parts[name] - need.parts[name]) / 412_442_352 for name in need.parts}
    assert saved["parameters"] == pytest.approx(2, rel=0.01)
    assert saved["optimizer"] == pytest.approx(8, rel=0.01)
    assert saved["gradients"] == pytest.approx(4, rel=0.01)


def test_a_batch_that_cannot_be_split_evenly_is_refused_before_anything_else(tmp_path):
    config = dataclasses.replace(
        _config.get_config("debug"), batch_size=6, grad_accumulation=4, checkpoint_base_dir=str(tmp_path)
    )
    words = r"batch_size: 6 cannot be split evenly over 1 devices and 4 parts .*Set --batch-size to a multiple of 4"
    with pytest.raises(errors.ConfigError, match=words):
        train_loop.train(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["grad_accumulation", "batch_size", "save_interval"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(errors.OutOfRangeError, match=rf"config 'debug'\.{name}: found 0, expected 1 to "):
        dataclasses.replace(_config.get_config("debug"), **{name: 0})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_train_steps": 0}, "num_train_steps: found 0, expected 1 to"),
        ({"keep_period": -3}, "keep_period: found -3, expected 1 to"),
        ({"num_workers": -1}, "num_workers: found -1, expected 0 to"),
        ({"seed": -1}, "seed: found -1, expected 0 to"),
        ({"max_loss_growth": 0}, "max_loss_growth: found 0, expected 1 to"),
        ({"ema_decay": 2.0}, "ema_decay: found 2, expected 0 to 0.999999"),
        ({"validation_interval": 10}, "no episodes are kept out. Add --data.validation.fraction 0.1"),
    ],
)
def test_impossible_numbers_are_refused_with_the_flags(fields, words):
    with pytest.raises(errors.UserError, match=words):
        dataclasses.replace(_config.get_config("debug_realman"), **fields)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(config, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    words = r"batch_size: 4 cannot be split evenly over 3 devices\. Set --batch-size to a multiple of 3"
    with pytest.raises(errors.ConfigError, match=words):
        train_loop.train(config)
    run_start.check_batch(dataclasses.replace(config, batch_size=9))


def test_advice_names_only_what_would_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _: 40 * GIB)
    with pytest.raises(memory.NotEnoughMemoryError) as info:
        memory.check_fits(_config.get_config("pi0_realman"), sharding.make_mesh(1))
    words = str(info.value)
    assert "It would fit with the config pi0_realman_lora" in words
    assert "--freeze-image-tower" not in words  # it saves 7 GiB, but 30 are missing


def test_the_plan_of_the_compiled_step_is_checked_and_corrects_the_estimates(config, monkeypatch):
    program = step_program.StepProgram.__new__(step_program.StepProgram)
    monkeypatch.setattr(program, "memory_bytes", lambda: 3 * GIB, raising=False)
    mesh = sharding.make_mesh(1)
    need = memory.training_need(config, mesh)
    memory.check_program(config, mesh, need, program)
    monkeypatch.setattr(memory, "available_bytes", lambda _: 2 * GIB)
    with pytest.raises(memory.NotEnoughMemoryError, match=r"needs 3.0 GiB, this cpu has 2.0 GiB"):
        memory.check_program(config, mesh, need, program)


def test_batches_that_wait_during_the_step_are_counted(config, monkeypatch):
    mesh = sharding.make_mesh(1)
    need = memory.training_need(config, mesh)
    # Four samples of three images. On the CPU there are the last batch as floats, and as bytes three that are read ahead and
    # two copies of the next one.
    assert need.parts["batches"] == pytest.approx((1 + 5 / 4) * 4 * 3 * 224 * 224 * 3 * 4, rel=0.01)
    program = step_program.StepProgram.__new__(step_program.StepProgram)
    monkeypatch.setattr(program, "memory_bytes", lambda: 3 * GIB, raising=False)
    for room, is_enough in ((1.01, True), (0.99, False)):
        available = int(3 * GIB + room * need.parts["batches"])
        monkeypatch.setattr(memory, "available_bytes", lambda _, available=available: available)
        with contextlib.nullcontext() if is_enough else pytest.raises(memory.NotEnoughMemoryError):
            memory.check_program(config, mesh, need, program)


def test_the_plan_of_a_compiled_step_is_near_the_estimate(config):
    mesh = sharding.make_mesh(1)
    spec = config.model.inputs_spec(batch_size=4)
    planned = step_program.compile_step(config, mesh, spec).memory_bytes()
    assert planned is not None
    assert 0.4 < memory.training_need(config, mesh).total / planned < 2.5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the C library of Linux")
def test_freed_memory_goes_back_to_the_system():
    """The C library keeps freed blocks that are too small for their own mapping and are below one still in use."""
    blocks = [np.ones(12_500) for _ in range(1500)]  # 100 kB each
    last = blocks.pop()
    blocks.clear()
    before = psutil.Process().memory_info().rss
    host_memory.give_back()
    host_memory.limit_arenas()
    assert before - psutil.Process().memory_info().rss > 75 * 2**20
    assert last.sum() == 12_500
