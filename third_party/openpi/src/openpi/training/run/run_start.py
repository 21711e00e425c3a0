"""Check a run before anything is written, and create its first state.

The first state is fresh or comes from a checkpoint.
"""

import logging
import shlex

import jax
import numpy as np
import orbax.checkpoint as ocp

from openpi.policies import checkpoint_folder
from openpi.shared import errors
from openpi.shared import nnx_utils
from openpi.shared import normalize
from openpi.shared import places
from openpi.training import checkpoints
from openpi.training import sharding as _sharding
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig
from openpi.training.data_loader import DataLoader
from openpi.training.data_loader import LoaderState
from openpi.training.host import distributed
from openpi.training.host import free_space
from openpi.training.host.run_lock import RunLock
from openpi.training.run import run_config
from openpi.training.step import train_state as _train_state
from openpi.training.step.train_state import TrainState

logger = logging.getLogger(__name__)


def check_batch(config: TrainConfig) -> None:
    """Check that a batch can be split evenly over devices and parts.

    Raises:
        ConfigError: It cannot.
    """
    devices, parts = jax.device_count(), config.grad_accumulation
    if config.batch_size % (devices * parts):
        over = f"{devices} devices" + (f" and {parts} parts (--grad-accumulation)" if parts > 1 else "")
        raise errors.ConfigError(
            f"batch_size: {config.batch_size} cannot be split evenly over {over}. "
            f"Set --batch-size to a multiple of {devices * parts}"
        )


def check_folder(config: TrainConfig, lock: RunLock) -> None:
    """Check and lock the run's folder.

    A folder that is missing is locked by `begin`.

    Raises:
        CheckpointExistsError: The run exists, and no flag says what to do with it.
        ConfigError: The folder cannot be written, the run was started with another config, or has done all its steps.
        RunInUseError: Another process trains this run.
    """
    checkpoints.check_usable(config.checkpoint_dir, overwrite=config.overwrite, resume=config.resume)
    places.check(config.checkpoint_dir, "--checkpoint-base-dir")
    if config.checkpoint_dir.exists():
        lock.take()
    if config.resume:
        run_config.check_resume(config, config.checkpoint_dir)
        steps = checkpoint_folder.complete_steps(config.checkpoint_dir)
        _check_unfinished(config, max(steps, default=-1) + 1)


def _check_unfinished(config: TrainConfig, num_done: int) -> None:
    if num_done >= config.num_train_steps:
        raise errors.ConfigError(
            f"{config.checkpoint_dir}: this run has done all its {num_done} steps. Raise --num-train-steps to continue"
        )


def check_disk(config: TrainConfig) -> free_space.Claim:
    """Return the space that the run's checkpoints will take.

    Raises:
        DiskFullError: There is no space for a single checkpoint.
    """
    folder = config.checkpoint_dir
    size = free_space.tree_bytes(_train_state.abstract_train_state(config))
    reusable = free_space.folder_bytes(folder) if folder.exists() else 0
    num_kept = 1 if config.data.validation.is_empty else 2
    return free_space.check_start(folder, size, num_kept=num_kept, reusable=reusable)


def check_statistics(config: TrainConfig, data_config: DataConfig) -> None:
    """Check that a resumed run has the statistics of its checkpoint.

    Raises:
        DataError: The checkpoint holds other statistics.
    """
    if not config.resume or data_config.norm_stats is None or data_config.asset_id is None:
        return
    try:
        assets = checkpoint_folder.resolve(config.checkpoint_dir) / checkpoint_folder.ASSETS_DIR
    except errors.MissingFileError:  # without a checkpoint the run starts afresh
        return
    stored = assets / data_config.asset_id
    if not (stored / normalize.FILE_NAME).exists():
        return
    if differences := _stats_differences(normalize.load(stored), data_config.norm_stats):
        here = f"{config.data.assets.assets_dir or config.assets_dirs}/{data_config.asset_id}"
        raise errors.DataError(
            f"{here}/{normalize.FILE_NAME}: differs from {stored / normalize.FILE_NAME}, which this run was trained with "
            f"({'; '.join(differences)}). To continue with those of the run, add '--data.assets.assets-dir {shlex.quote(str(assets))}'. "
            "To use the others, start a new run with another --exp-name"
        )


def _stats_differences(before: dict[str, normalize.NormStats], now: dict[str, normalize.NormStats]) -> list[str]:
    """Describe the largest difference of each key."""
    differences = [f"'{key}' is in one of them only" for key in sorted(before.keys() ^ now.keys())]
    for key in sorted(before.keys() & now.keys()):
        for field in ("mean", "std", "q01", "q99"):
            old, new = getattr(before[key], field), getattr(now[key], field)
            if old is None or new is None:
                continue
            if np.shape(old) != np.shape(new):
                differences.append(f"{key} {field} has {np.size(old)} numbers, not {np.size(new)}")
            elif not np.allclose(old, new, rtol=1e-6, atol=1e-9):
                at = int(np.argmax(np.abs(np.subtract(old, new))))
                differences.append(f"{key} {field}[{at}] was {old[at]:.4g}, is {new[at]:.4g}")
    return differences[:4]


def check_weights(config: TrainConfig) -> None:
    """Check the base weights before the step is compiled.

    Raises:
        UserError: The weights are missing or do not fit the model.
    """
    # The method is optional. A resumed run does not load base weights.
    check = getattr(config.weight_loader, "check", None)
    if check is not None and not config.resume:
        check(nnx_utils.to_pure_dict(_train_state.abstract_train_state(config).params))


def begin(
    config: TrainConfig, mesh: jax.sharding.Mesh, loader: DataLoader, lock: RunLock, *, keep_best: bool
) -> tuple[ocp.CheckpointManager, TrainState]:
    """Prepare the run's folder and return its checkpoints and first state.

    For a resumed run, the loader is set to its stored position.

    Raises:
        UserError: The weights or the checkpoint cannot be read or do not fit the config, or all steps are done.
    """
    # Load the weights first, so that a failure does not delete an older run.
    fresh = None if config.resume else _fresh_state(config, mesh)
    manager, resuming = checkpoints.initialize_checkpoint_dir(
        config.checkpoint_dir,
        keep_period=config.keep_period,
        overwrite=config.overwrite,
        resume=config.resume,
        keep_best=keep_best,
    )
    # A fresh folder, and one that was deleted by --overwrite, is not locked yet.
    distributed.first_then_others(lock.take, lambda: None)
    if resuming:
        state = _resume(config, mesh, manager, loader)
    else:
        state = _fresh_state(config, mesh) if fresh is None else fresh
    # Process 0 writes the config. The other processes must see it, or the folder is not shared.
    path = config.checkpoint_dir / run_config.FILE_NAME
    step = int(state.step)
    distributed.first_then_others(
        lambda: run_config.store(config, config.checkpoint_dir, step=step), lambda: distributed.check_shared(path)
    )
    return manager, state


def rngs(config: TrainConfig, mesh: jax.sharding.Mesh) -> tuple[jax.Array, jax.Array]:
    """Return the random keys of the steps and of the initial parameters."""
    train_rng, init_rng = jax.random.split(jax.random.key(config.seed))
    return distributed.replicate((train_rng, init_rng), _sharding.replicated_sharding(mesh))


def _fresh_state(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    return _train_state.init_train_state(config, rngs(config, mesh)[1], mesh)


def _resume(
    config: TrainConfig, mesh: jax.sharding.Mesh, manager: ocp.CheckpointManager, loader: DataLoader
) -> TrainState:
    state, loader_state = checkpoints.restore_state(
        manager, _train_state.abstract_train_state(config), _train_state.state_sharding(config, mesh)
    )
    step = int(state.step)
    _check_unfinished(config, step)
    # The original stores no position. Its loader took one batch per step.
    loader.restore(loader_state or LoaderState(position=step * config.batch_size, seed=config.seed))
    logger.info("resuming at step %d", step)
    return state
