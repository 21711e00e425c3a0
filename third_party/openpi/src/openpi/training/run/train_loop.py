"""Train from a config to the last checkpoint."""

from collections.abc import Iterator
import dataclasses
import logging
import pathlib
import shlex
import signal
import sys
import time

from flax import nnx
import jax
import orbax.checkpoint as ocp
import tqdm
import tqdm.contrib.logging

from openpi.policies import step_settings
from openpi.training import checkpoints
from openpi.training import data_loader as _data_loader
from openpi.training import sharding as _sharding
from openpi.training.configs.train_config import TrainConfig
from openpi.training.data_loader import Batch
from openpi.training.data_loader import DataLoader
from openpi.training.host import distributed
from openpi.training.host import free_space
from openpi.training.host import host_memory
from openpi.training.host.run_lock import RunLock
from openpi.training.host.stop_signal import StopSignal
from openpi.training.memory import budget as memory
from openpi.training.reports import divergence
from openpi.training.reports import run_reports
from openpi.training.reports.step_meter import StepMeter
from openpi.training.run import run_start
from openpi.training.run import validation as _validation
from openpi.training.step import step_program
from openpi.training.step import train_state as _train_state
from openpi.training.step.train_state import TrainState

logger = logging.getLogger(__name__)

# Time between redraws of the progress bar, s. Outside a terminal each redraw is a line of a log file, so they are rare.
_BAR_INTERVAL_S = 0.5 if sys.stderr.isatty() else 20.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a run."""

    first_step: int
    # Number of steps done in total, including those from before a resume.
    num_steps: int
    first_loss: float
    last_loss: float
    seconds: float
    # Folder of the last checkpoint.
    checkpoint: pathlib.Path
    # The signal that ended the run early.
    stop_signal: int | None


def train(config: TrainConfig) -> Summary:
    """Train until `config.num_train_steps`, or until SIGINT or SIGTERM.

    Everything that can go wrong with config, data, memory and disk is checked before the run's folder changes.

    Raises:
        UserError: The run cannot start or continue. The message says what to do.
    """
    lock = RunLock(config.checkpoint_dir)
    try:
        return _train(config, lock)
    finally:
        lock.release()


def _train(config: TrainConfig, lock: RunLock) -> Summary:
    start_s = time.perf_counter()

    # Checks that need no data: config, folder, memory and disk.
    run_start.check_batch(config)
    # The other processes do not check the folder, because process 0 may be ahead of them and have created it.
    distributed.first_then_others(lambda: run_start.check_folder(config, lock), lambda: None)
    run_reports.check_installed(config)
    mesh = _sharding.make_mesh(config.fsdp_devices)
    need = memory.check_fits(config, mesh)
    claim = run_start.check_disk(config)

    # Checks that read files: data, statistics and base weights.
    loader = _data_loader.create_data_loader(
        config, sharding=_sharding.data_sharding(mesh), shuffle=True, leave_room=claim
    )
    run_start.check_statistics(config, loader.data_config())
    validation = _validation.create(config, mesh, _train_state.model_definition(config))
    run_start.check_weights(config)

    # Compiling takes longest, and the compiled step knows its memory.
    program = step_program.compile_step(config, mesh, loader.spec())
    memory.check_program(config, mesh, need, program)

    # From here on, the run's folder changes.
    manager, state = run_start.begin(config, mesh, loader, lock, keep_best=validation is not None)
    loop = _TrainLoop(config, mesh, manager, loader, validation, program, first_step=int(state.step))
    try:
        with StopSignal() as stop, tqdm.contrib.logging.logging_redirect_tqdm():
            loop.run(state, stop)
            loop.finish()
    finally:
        loop.close()
    return dataclasses.replace(loop.summary(), seconds=time.perf_counter() - start_s)


class _TrainLoop:
    """The steps of a run, and its reports, validations and checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: jax.sharding.Mesh,
        manager: ocp.CheckpointManager,
        loader: DataLoader,
        validation: _validation.Validation | None,
        program: step_program.StepProgram,
        *,
        first_step: int,
    ) -> None:
        self._config = config
        self._manager = manager
        self._loader = loader
        self._validation = validation
        self._program = program
        self._rng = run_start.rngs(config, mesh)[0]
        self._directory = config.checkpoint_dir
        self._first_step = first_step
        self._reports = run_reports.RunReports(config, self._directory, first_step)
        self._meter = StepMeter(config.batch_size, max_loss_growth=config.max_loss_growth)
        self._saved_step = first_step - 1
        self._stop_signal: int | None = None

    def run(self, state: TrainState, stop: StopSignal) -> None:
        """Do the steps that are left.

        Raises:
            DivergedError: The loss or a validation is not finite, or the loss has grown too much. The batch has been saved.
            DiskFullError: A checkpoint could not be written.
        """
        try:
            self._run_steps(state, stop)
        except divergence.DivergedError as e:
            if e.batch is None:
                raise
            try:
                path, extremes = divergence.save_batch(self._directory, e.step, e.batch)
            except OSError as error:  # a full disk must not hide why the run ends
                place = f"Its batch could not be written ({error.strerror or error}). "
                raise divergence.DivergedError(e.step, e.reason, place=place) from e
            command = f"python -m openpi.training.reports.divergence {shlex.quote(str(path))}"
            place = f"Its batch is in {path} ({extremes}). Look at it with '{command}'. "
            raise divergence.DivergedError(e.step, e.reason, place=place) from e

    def _run_steps(self, state: TrainState, stop: StopSignal) -> None:
        config = self._config
        batches = iter(self._loader)
        with tqdm.tqdm(
            total=config.num_train_steps,
            initial=self._first_step,
            unit="step",
            mininterval=_BAR_INTERVAL_S,
            disable=not distributed.is_first(),
        ) as bar:
            for step in range(self._first_step, config.num_train_steps):
                batch, wait_s = _timed_next(batches)
                if step == 0:
                    self._reports.write_views(batch[0])
                state, info = self._program(self._rng, state, batch, stop_asked=stop.received is not None)
                self._meter.add(step, info, wait_s, batch)
                bar.update()
                # Decide what is due after this step.
                is_end = step == config.num_train_steps - 1
                is_last = self._is_stopping(stop) or is_end
                is_save = is_last or (step % config.save_interval == 0 and step > self._first_step)
                if step % config.log_interval == 0 or is_last:
                    self._report(step, bar)
                # A run that was asked to stop skips this validation, because its time may be short.
                metrics = self._validate(state, step, with_checkpoint=is_save) if is_end or not is_last else None
                if is_save:
                    self._save(state, step, metrics, stop, is_last=is_last)
                elif not self._manager.is_saving_in_progress():
                    checkpoints.point_to_best(self._manager)
                if is_last:
                    break

    def _is_stopping(self, stop: StopSignal) -> bool:
        if distributed.is_several():
            # All processes must stop after the same step, so they read the same scalar of the last settled step.
            if self._meter.last.get(step_program.STOP):
                self._stop_signal = stop.received or signal.SIGTERM
        else:
            self._stop_signal = stop.received
        return self._stop_signal is not None

    def _report(self, step: int, bar: tqdm.tqdm) -> None:
        metrics = self._meter.flush()
        metrics[step_program.LEARNING_RATE] = self._meter.last[step_program.LEARNING_RATE]
        self._reports.write(step, metrics)
        bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, {metrics['samples_per_s']:.1f} samples/s, "
            f"loader wait {metrics['loader_wait']:.0%}"
        )

    def _validate(self, state: TrainState, step: int, *, with_checkpoint: bool) -> dict[str, float] | None:
        interval = self._config.validation_interval
        is_due = with_checkpoint or (interval is not None and step % interval == 0 and step > self._first_step)
        if self._validation is None or not is_due:
            return None
        start_s = time.perf_counter()
        self._meter.settle()
        try:
            metrics = self._validation.run(_served_params(state))
        except _validation.NotFiniteError as e:  # checked like the loss: such parameters are not worth a checkpoint
            raise divergence.DivergedError(step, e.reason, e.batch) from e
        self._reports.write_validation(step, metrics)
        self._meter.pause(time.perf_counter() - start_s)
        return metrics

    def _save(
        self, state: TrainState, step: int, metrics: dict[str, float] | None, stop: StopSignal, *, is_last: bool
    ) -> None:
        # A diverged state must not replace a good one, so check the last step first.
        self._meter.settle()
        start_s = time.perf_counter()
        self._reports.draw_curves()
        with free_space.explain(self._directory):
            self._manager.wait_until_finished()
        if self._has_room(state, stop, is_last=is_last):
            self._write_checkpoint(state, step, metrics)
        host_memory.give_back()  # used by the curves, the validation and the previous save
        self._meter.pause(time.perf_counter() - start_s)

    def _has_room(self, state: TrainState, stop: StopSignal, *, is_last: bool) -> bool:
        return distributed.first_decides(
            lambda: free_space.has_room(
                self._directory,
                free_space.tree_bytes(state),
                is_last=is_last,
                is_ending=lambda: stop.received is not None,
            )
        )

    def _write_checkpoint(self, state: TrainState, step: int, metrics: dict[str, float] | None) -> None:
        score = None
        if self._validation is not None:
            score = (metrics or {}).get(_validation.SCORE, checkpoints.NO_SCORE)
        with free_space.explain(self._directory):
            checkpoints.save_state(
                self._manager,
                state,
                self._loader.data_config(),
                self._loader.state(),
                step,
                score=score,
                rtc_max_delay=getattr(self._config.model, "rtc_max_delay", 0),
                settings=step_settings.describe(self._config, self._loader.data_config()),
            )
        self._saved_step = step

    def finish(self) -> None:
        """Wait for the last save, and point to the best checkpoint.

        Raises:
            DiskFullError: The last checkpoint could not be written.
        """
        with free_space.explain(self._directory):
            self._manager.wait_until_finished()
        checkpoints.point_to_best(self._manager)

    def close(self) -> None:
        """Close the reports and the checkpoints.

        A save that is in progress is finished first. It may have replaced the checkpoint that `best` points to.
        """
        self._reports.finish()
        try:
            self._manager.wait_until_finished()
            checkpoints.point_to_best(self._manager)
            self._manager.close()
        except Exception as e:
            # An error of the run, or of the save in `finish`, came first and says more.
            logger.warning("closing the checkpoints: %s", str(e).splitlines()[0] if str(e) else type(e).__name__)

    def summary(self) -> Summary:
        """Return the result of the run.

        The caller fills in the time.
        """
        lines = self._reports.lines
        return Summary(
            first_step=self._first_step,
            num_steps=int(lines[-1]["step"]) + 1,
            first_loss=lines[0]["loss"],
            last_loss=lines[-1]["loss"],
            seconds=0.0,
            checkpoint=self._directory / str(self._saved_step),
            stop_signal=self._stop_signal,
        )


def _served_params(state: TrainState) -> nnx.State:
    return state.params if state.ema_params is None else state.ema_params


def _timed_next(batches: Iterator[Batch]) -> tuple[Batch, float]:
    start_s = time.perf_counter()
    return next(batches), time.perf_counter() - start_s
