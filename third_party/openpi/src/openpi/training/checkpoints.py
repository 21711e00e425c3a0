"""Save and restore the checkpoints of a training run.

The layout is `<run>/<step>/{params,train_state,assets/<asset_id>/norm_stats.json}`, with `settings.json` in `assets`. Saving happens in the background.
A folder gets its final name only when it is complete.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import logging
import math
import pathlib
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from openpi.policies import checkpoint_folder
from openpi.policies import step_settings
from openpi.shared import errors
from openpi.shared import normalize
from openpi.shared import storage_errors
from openpi.training.configs.data_config import DataConfig
from openpi.training.data_loader import LoaderState
from openpi.training.step import checkpoint_tree
from openpi.training.step.train_state import TrainState

logger = logging.getLogger(__name__)

# Longest wait for a save in the background, s. Large states on slow network disks take long.
_SAVE_TIMEOUT_S = 7200
# Key of the data loader's position in the checkpoint's own metadata file.
_LOADER_KEY = "data_loader"

# Items that a run is resumed from.
_STATE_ITEMS = ("params", "train_state")

# Name of the link in the run's folder to the checkpoint with the lowest score.
BEST_NAME = "best"
# Keys of a checkpoint's metrics: its score (lower is better), and its step.
_SCORE, _STEP = "score", "step"
# Score of a checkpoint without a validation, in a run that keeps the best one. A score from here on, or one that is not
# finite, says nothing, so it never wins against another one.
NO_SCORE = 1e30


class CheckpointExistsError(errors.UserError, FileExistsError):
    """Raised when the run's folder exists and no flag handles it."""


class CallbackHandler(ocp.CheckpointHandler):
    """Lets a function fill an item's folder, which orbax does not restore."""

    def save(self, directory: Any, args: "CallbackSave") -> None:
        """Call the function with the folder, in process 0 only."""
        if jax.process_index() == 0:
            args.callback(pathlib.Path(directory))

    def restore(self, directory: Any, args: Any | None = None) -> None:
        """Refuse, because readers take the files directly from the folder."""
        raise TypeError("this item holds plain files. Read them from its folder")


@ocp.args.register_with_handler(CallbackHandler, for_save=True)
@dataclasses.dataclass
class CallbackSave(ocp.args.CheckpointArgs):
    """The function that the handler calls."""

    callback: Callable[[pathlib.Path], None]


@ocp.args.register_with_handler(CallbackHandler, for_restore=True)
@dataclasses.dataclass
class CallbackRestore(ocp.args.CheckpointArgs):
    """An empty class that only orbax's registry needs."""


def check_usable(checkpoint_dir: pathlib.Path | str, *, overwrite: bool, resume: bool) -> None:
    """Refuse a run's folder that exists if no flag handles it.

    Raises:
        CheckpointExistsError: The folder exists and neither flag is given.
    """
    folder = pathlib.Path(checkpoint_dir).resolve()
    if folder.exists() and not (overwrite or resume):
        raise CheckpointExistsError(
            f"{folder}: this run already exists. Continue it with --resume, start again with --overwrite (deletes it), "
            "or choose another --exp-name"
        )


def initialize_checkpoint_dir(
    checkpoint_dir: pathlib.Path | str,
    *,
    keep_period: int | None,
    overwrite: bool,
    resume: bool,
    keep_best: bool = False,
) -> tuple[ocp.CheckpointManager, bool]:
    """Prepare a run's folder.

    Args:
        checkpoint_dir: The folder.
        keep_period: Checkpoints of steps divisible by it are kept forever. Of the others, only the newest is kept.
        keep_best: Also keep the checkpoint with the lowest score.
        overwrite: Delete an existing run.
        resume: Continue an existing run. Without a checkpoint the run starts afresh, with a line in the log.

    Returns:
        The manager, and whether there is a checkpoint to resume from.

    Raises:
        CheckpointExistsError: The folder exists and neither flag is given.
    """
    folder = pathlib.Path(checkpoint_dir).resolve()
    if jax.process_index() == 0:
        check_usable(folder, overwrite=overwrite, resume=resume)
        if folder.exists() and overwrite:
            logger.info("deleting %s (--overwrite)", folder)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("run folder")
    manager = _create_manager(folder, keep_period, keep_best=keep_best)
    resuming = resume and bool(manager.all_steps())
    if resume and not resuming:
        logger.warning("%s: no checkpoint to resume from, starting at step 0", folder)
    return manager, resuming


def _create_manager(folder: pathlib.Path, keep_period: int | None, *, keep_best: bool) -> ocp.CheckpointManager:
    def rank(metrics: dict[str, float]) -> float:
        # The newest one ranks first, so that the two best are the newest one and the best of the others.
        # Every other key is finite, because sorting fails silently where one is NaN.
        return -math.inf if metrics.get(_STEP) == manager.latest_step() else _usable_score(metrics)

    retention: dict[str, Any] = {"max_to_keep": 1}
    if keep_best:
        retention = {"max_to_keep": 2, "best_fn": rank, "best_mode": "min", "keep_checkpoints_without_metrics": False}
    manager = ocp.CheckpointManager(
        folder,
        item_handlers={
            "assets": CallbackHandler(),
            "train_state": ocp.PyTreeCheckpointHandler(),
            "params": ocp.PyTreeCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            **retention,
            keep_period=keep_period,
            create=False,
            # A killed process may have left half a checkpoint.
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(timeout_secs=_SAVE_TIMEOUT_S),
        ),
    )
    return manager


def _usable_score(metrics: Mapping[str, float]) -> float:
    """Return the score of a checkpoint, `NO_SCORE` if it says nothing.

    Runs of older versions may have stored NaN.
    """
    score = metrics.get(_SCORE, NO_SCORE)
    return min(score, NO_SCORE) if math.isfinite(score) else NO_SCORE


def point_to_best(manager: ocp.CheckpointManager) -> None:
    """Point the link `best` to the checkpoint with the lowest score.

    Of equal ones it is the newest, as in what the manager keeps. Do nothing if there are no scores.
    """
    if jax.process_index() != 0:
        return
    scores = {step: _usable_score(metrics) for step in manager.all_steps() if (metrics := manager.metrics(step))}
    if not scores or min(scores.values()) >= NO_SCORE:
        return
    best = str(min(scores, key=lambda step: (scores[step], -step)))
    link = pathlib.Path(manager.directory) / BEST_NAME
    if link.is_symlink() and str(link.readlink()) == best:
        return
    partial = link.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(best)  # relative, because the run may be moved
    partial.replace(link)


def save_state(
    manager: ocp.CheckpointManager,
    state: TrainState,
    data_config: DataConfig,
    loader_state: LoaderState,
    step: int,
    *,
    score: float | None = None,
    rtc_max_delay: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Start to save a checkpoint in the background.

    `manager.wait_until_finished()` waits for it.

    Args:
        manager: Manager of the run's folder.
        state: State to save. It is copied before this returns, so it may be donated afterwards.
        data_config: Its statistics are stored with the parameters, because a policy is useless without them.
        loader_state: Where the data loader continues after a resume.
        step: Number of the folder.
        score: Score of the checkpoint, lower is better. It is required if the manager keeps the best one. Use `NO_SCORE`
            without a validation. One that is not finite is stored as `NO_SCORE`.
        rtc_max_delay: Value of the model's config. A flag may have set it, and a server must know it.
        settings: What `step_settings.describe` says about the run. Stored with the statistics.
    """

    def write_assets(directory: pathlib.Path) -> None:
        if settings is not None:
            step_settings.write(directory, settings)
        if data_config.norm_stats is not None and data_config.asset_id is not None:
            folder = directory / data_config.asset_id
            normalize.save(folder, data_config.norm_stats, data_config.norm_stats_provenance)

    params, train_state = checkpoint_tree.to_disk(state)
    manager.save(
        step,
        args=ocp.args.Composite(
            assets=CallbackSave(write_assets),
            train_state=ocp.args.PyTreeSave(train_state),
            params=ocp.args.PyTreeSave(params),
        ),
        metrics=None if score is None else {_SCORE: _usable_score({_SCORE: score}), _STEP: step},
        custom_metadata={_LOADER_KEY: dict(loader_state), checkpoint_folder.RTC_MAX_DELAY_KEY: rtc_max_delay},
    )


def restore_state(
    manager: ocp.CheckpointManager, template: TrainState, shardings: TrainState, step: int | None = None
) -> tuple[TrainState, LoaderState | None]:
    """Read a checkpoint onto the devices.

    Args:
        manager: Manager of the run's folder.
        template: The expected train state, as ShapeDtypeStructs.
        shardings: Placement of each leaf on the current devices, not on those that wrote the checkpoint.
        step: Step of the checkpoint. With None, it is the newest one.

    Returns:
        The state, and the data loader's position if the checkpoint has one.

    Raises:
        DataError: The checkpoint belongs to another model or optimizer, or is damaged.
    """
    step = manager.latest_step() if step is None else step
    describe = functools.partial(_describe_damage, manager, step)
    with storage_errors.explained(describe):
        metadata = manager.metadata(step)
        stored = {name: metadata.item_metadata[name] for name in _STATE_ITEMS}
    # Compare shapes before any array is read.
    args = {}
    for name, item, placement in zip(
        _STATE_ITEMS, checkpoint_tree.to_disk(template), checkpoint_tree.to_disk(shardings), strict=True
    ):
        _check_fits(f"{manager.directory}/{step}/{name}", stored[name], item)
        restore_args = jax.tree.map(
            lambda leaf, sharding: ocp.ArrayRestoreArgs(
                restore_type=jax.Array, sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
            ),
            item,
            placement,
        )
        args[name] = ocp.args.PyTreeRestore(item, restore_args=restore_args)
    with storage_errors.explained(describe):
        items = manager.restore(step, args=ocp.args.Composite(**args))
    restored = checkpoint_tree.from_disk(template, items["params"], items["train_state"])
    return restored, (metadata.custom_metadata or {}).get(_LOADER_KEY)


def _describe_damage(manager: ocp.CheckpointManager, step: int, reason: str) -> str:
    older = sorted(each for each in manager.all_steps() if each < step)
    remedy = (
        f"Move it away to resume at step {older[-1]}"
        if older
        else "Copy it here again, or start a run with another --exp-name"
    )
    return f"{manager.directory}/{step}: the checkpoint is damaged ({reason}). {remedy}"


def _check_fits(place: str, found: Any, expected: Any) -> None:
    """Compare the paths and shapes of a stored tree with a template."""
    # Newer versions of orbax wrap the tree.
    found_shapes = _shapes(getattr(found, "tree", found))
    expected_shapes = _shapes(expected)
    problems = [f"'{path}' is missing" for path in expected_shapes.keys() - found_shapes.keys()]
    problems += [f"'{path}' is not in the config" for path in found_shapes.keys() - expected_shapes.keys()]
    problems += [
        f"'{path}': found {found_shapes[path]}, expected {shape}"
        for path, shape in expected_shapes.items()
        if found_shapes.get(path, shape) != shape
    ]
    if problems:
        raise errors.DataError(
            f"{place}: does not fit this config ({len(problems)} differences): {'; '.join(sorted(problems)[:4])}. "
            "Resume with the config and flags that the run was started with, or choose another --exp-name"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    def name(key: Any) -> str:
        return str(next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field)))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(name(key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
