"""A training run from config to last checkpoint."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import logging
import pathlib
import sys
import time

import jax
import orbax.checkpoint as ocp
import tqdm
import tqdm.contrib.logging

from openpi.shared import errors
from openpi.training import checkpoints
from openpi.training import data_loader as _data_loader
from openpi.training import memory
from openpi.training import run_log
from openpi.training import sharding as _sharding
from openpi.training import train_state as _train_state
from openpi.training import train_step as _train_step
from openpi.training.data_loader import Batch
from openpi.training.data_loader import DataLoader
from openpi.training.data_loader import LoaderState
from openpi.training.step_meter import StepMeter
from openpi.training.stop_signal import StopSignal
from openpi.training.train_config import TrainConfig
from openpi.training.train_state import TrainState
from openpi.training.wandb_log import WandbLog

logger = logging.getLogger(__name__)

StepFn = Callable[[jax.Array, TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

# Time between redraws of the progress bar, s: rarely where each one is a line of a log file.
_BAR_INTERVAL_S = 0.5 if sys.stderr.isatty() else 20.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run went."""

    first_step: int
    # Number of steps that the run has done in all, earlier parts included.
    num_steps: int
    first_loss: float
    last_loss: float
    seconds: float
    # Folder of the last checkpoint.
    checkpoint: pathlib.Path
    # The signal that ended the run early.
    stop_signal: int | None


def train(config: TrainConfig) -> Summary:
    """Train until `config.num_train_steps`, or until SIGINT or SIGTERM, saving on the way.

    Everything that can be wrong with config, data and memory is checked before the run's folder is touched.

    Raises:
        UserError: The run cannot begin or go on; the message says what to do.
    """
    start_s = time.perf_counter()
    _check_batch(config)
    checkpoints.check_usable(config.checkpoint_dir, overwrite=config.overwrite, resume=config.resume)
    mesh = _sharding.make_mesh(config.fsdp_devices)
    memory.check_fits(config, mesh)
    loader = _data_loader.create_data_loader(config, sharding=_sharding.data_sharding(mesh), shuffle=True)
    train_rng, init_rng = jax.random.split(jax.random.key(config.seed))
    manager, state = _begin(config, mesh, loader, init_rng)
    run = _Run(config, mesh, manager, loader, train_rng, first_step=int(state.step))
    try:
        with StopSignal() as stop, tqdm.contrib.logging.logging_redirect_tqdm():
            run.go(state, stop)
    finally:
        manager.close()  # waits for what is being saved
    return dataclasses.replace(run.summary(stop), seconds=time.perf_counter() - start_s)


def _check_batch(config: TrainConfig) -> None:
    if config.batch_size % jax.device_count():
        raise errors.ConfigError(
            f"batch_size: {config.batch_size} cannot be split evenly over {jax.device_count()} devices; "
            "set --batch-size to a multiple"
        )


def _begin(
    config: TrainConfig, mesh: jax.sharding.Mesh, loader: DataLoader, rng: jax.Array
) -> tuple[ocp.CheckpointManager, TrainState]:
    # Weights that cannot be loaded must be found out before an older run is deleted.
    fresh = None if config.resume else _train_state.init_train_state(config, rng, mesh)
    manager, resuming = checkpoints.initialize_checkpoint_dir(
        config.checkpoint_dir, keep_period=config.keep_period, overwrite=config.overwrite, resume=config.resume
    )
    if resuming:
        return manager, _resume(config, mesh, manager, loader)
    return manager, _train_state.init_train_state(config, rng, mesh) if fresh is None else fresh


def _resume(
    config: TrainConfig, mesh: jax.sharding.Mesh, manager: ocp.CheckpointManager, loader: DataLoader
) -> TrainState:
    state, loader_state = checkpoints.restore_state(
        manager, _train_state.abstract_train_state(config), _train_state.state_sharding(config, mesh)
    )
    step = int(state.step)
    if step >= config.num_train_steps:
        raise errors.ConfigError(
            f"{manager.directory}: this run has done all its {step} steps; raise --num-train-steps to go on"
        )
    # The original stores no position; its loader had taken one batch a step.
    loader.restore(loader_state or LoaderState(position=step * config.batch_size, seed=config.seed))
    logger.info("resuming at step %d", step)
    return state


class _Run:
    """The loop and what it writes to."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: jax.sharding.Mesh,
        manager: ocp.CheckpointManager,
        loader: DataLoader,
        rng: jax.Array,
        *,
        first_step: int,
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._manager = manager
        self._loader = loader
        self._rng = rng
        self._directory = config.checkpoint_dir
        self._first_step = first_step
        self._log = run_log.RunLog(self._directory, first_step)
        self._wandb = WandbLog(config, self._directory, resuming=first_step > 0)
        self._meter = StepMeter(config.batch_size)

    def go(self, state: TrainState, stop: StopSignal) -> None:
        """Do the steps that are left."""
        config = self._config
        step_fn = self._compile(state)
        batches = iter(self._loader)
        with tqdm.tqdm(
            total=config.num_train_steps, initial=self._first_step, unit="step", mininterval=_BAR_INTERVAL_S
        ) as bar:
            for step in range(self._first_step, config.num_train_steps):
                batch, wait_s = _timed_next(batches)
                if step == 0:
                    self._wandb.write_image(0, "camera_views", run_log.save_camera_views(self._directory, batch[0]))
                state, info = step_fn(self._rng, state, batch)
                self._meter.add(step, info, wait_s)
                bar.update()
                is_last = step == config.num_train_steps - 1 or stop.received is not None
                if step % config.log_interval == 0 or is_last:
                    self._report(step, bar)
                if is_last or (step % config.save_interval == 0 and step > self._first_step):
                    self._save(state, step)
                if is_last:
                    break
        self._wandb.finish()

    def _compile(self, state: TrainState) -> StepFn:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        replicated = _sharding.replicated_sharding(self._mesh)
        step_fn = jax.jit(
            functools.partial(_train_step.train_step, self._config, _train_state.model_definition(self._config)),
            in_shardings=(replicated, shardings, _sharding.data_sharding(self._mesh)),
            out_shardings=(shardings, replicated),
            donate_argnums=(1,),
        )

        def step(rng: jax.Array, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            with _sharding.set_mesh(self._mesh):
                return step_fn(rng, state, batch)

        return step

    def _report(self, step: int, bar: tqdm.tqdm) -> None:
        metrics = self._meter.flush()
        self._log.write(step, metrics)
        self._wandb.write(step, metrics)
        bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, {metrics['samples_per_s']:.1f} samples/s, "
            f"loader wait {metrics['loader_wait']:.0%}"
        )
        logger.info(
            "step %d: loss %.4f, grad_norm %.3f, param_norm %.2f, %.1f samples/s, loader wait %.0f %%",
            *(step, metrics["loss"], metrics["grad_norm"], metrics["param_norm"], metrics["samples_per_s"]),
            100 * metrics["loader_wait"],
        )

    def _save(self, state: TrainState, step: int) -> None:
        self._meter.settle()  # a state that has diverged must not replace a good one
        checkpoints.save_state(self._manager, state, self._loader.data_config(), self._loader.state(), step)
        self._log.draw_curves()

    def summary(self, stop: StopSignal) -> Summary:
        """Return how it went; the time is filled in by the caller."""
        lines = self._log.lines
        last_step = int(lines[-1]["step"])
        return Summary(
            first_step=self._first_step,
            num_steps=last_step + 1,
            first_loss=lines[0]["loss"],
            last_loss=lines[-1]["loss"],
            seconds=0.0,
            checkpoint=self._directory / str(last_step),
            stop_signal=stop.received,
        )


def _timed_next(batches: Iterator[Batch]) -> tuple[Batch, float]:
    start_s = time.perf_counter()
    return next(batches), time.perf_counter() - start_s
