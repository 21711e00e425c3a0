"""Find checkpoints and their parts in a folder.

The layout is `<step>/{params,train_state,assets/<asset_id>/norm_stats.json}`.
"""

import json
import logging
import pathlib

from openpi.shared import download
from openpi.shared import normalize
from openpi.shared.errors import DataError
from openpi.shared.errors import MissingFileError

logger = logging.getLogger(__name__)

PARAMS_DIR = "params"
ASSETS_DIR = "assets"

RTC_MAX_DELAY_KEY = "rtc_max_delay"
"""Key in the checkpoint's own metadata. The value is that of the model config's field in training."""

# Where orbax keeps the metadata of a checkpoint.
_METADATA_FILE = "_CHECKPOINT_METADATA"

# The original project's PyTorch trainer writes this file instead of `params`.
_PYTORCH_WEIGHTS = "model.safetensors"


def resolve(checkpoint_dir: pathlib.Path | str) -> pathlib.Path:
    """Return the local folder of one step.

    Args:
        checkpoint_dir: A step's folder, a run's folder for its newest step, or a folder of runs for the run that was saved
            last. Local or remote.

    Raises:
        MissingFileError: It does not exist or has no parameters. The message says what was found.
        DataError: It is a PyTorch checkpoint.
    """
    # Resolved, because a run's link "best" stands for the step to which it leads.
    folder = pathlib.Path(download.maybe_download(str(checkpoint_dir))).resolve()
    if (folder / PARAMS_DIR).is_dir():
        return folder
    if (folder / _PYTORCH_WEIGHTS).is_file():
        raise DataError(
            f"{folder}: found a PyTorch checkpoint ('{_PYTORCH_WEIGHTS}'), expected a JAX one with '{PARAMS_DIR}/'"
        )
    if runs := _runs(folder):
        folder = max(runs, key=_last_saved)
        logger.info("found %d run(s), using the one saved last: %s", len(runs), folder)
    if steps := complete_steps(folder):
        newest = folder / str(max(steps))
        logger.info("%s: found %d checkpoints, using the newest: step %d", folder, len(steps), max(steps))
        return newest
    raise MissingFileError(f"{folder}: not a checkpoint, '{PARAMS_DIR}/' not found ({_describe(folder)})")


def asset_id_in(step_dir: pathlib.Path, asset_id: str | None) -> str | None:
    """Return the subfolder of its assets that has a checkpoint's statistics.

    Args:
        step_dir: A step's folder.
        asset_id: The expected subfolder. If it has no statistics and exactly one other subfolder has some, that one is
            returned, because the checkpoint was trained with another id.
    """
    found = _asset_ids(step_dir)
    if asset_id in found or len(found) != 1:
        return asset_id
    logger.warning("%s: no norm stats of '%s' found, using the only ones, of '%s'", step_dir, asset_id, found[0])
    return found[0]


def find_norm_stats(step_dir: pathlib.Path, asset_id: str | None) -> pathlib.Path:
    """Return the folder of the statistics saved with a checkpoint.

    `asset_id_in` chooses it.

    Raises:
        MissingFileError: There are none, or several but none for `asset_id`. The message lists them.
    """
    assets, asset_id = step_dir / ASSETS_DIR, asset_id_in(step_dir, asset_id)
    if asset_id is not None and (assets / asset_id / normalize.FILE_NAME).is_file():
        return assets / asset_id
    listed = ", ".join(f"'{name}'" for name in _asset_ids(step_dir)) or "none"
    raise MissingFileError(
        f"{assets}: no norm stats of '{asset_id}' (found: {listed}). Set the config's assets.asset_id to one of them, or "
        "train with statistics, which are then saved with each checkpoint"
    )


def load_norm_stats(step_dir: pathlib.Path, asset_id: str | None) -> dict[str, normalize.NormStats]:
    """Read the statistics that `find_norm_stats` finds."""
    return normalize.load(find_norm_stats(step_dir, asset_id))


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Return the steps in a run's folder that have parameters.

    A missing folder has none.
    """
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal() and (path / PARAMS_DIR).is_dir()]


def step_of(step_dir: pathlib.Path) -> int | None:
    """Return the training step of a step's folder.

    None if its name is not a number.
    """
    return int(step_dir.name) if step_dir.name.isdecimal() else None


def rtc_max_delay(step_dir: pathlib.Path) -> int | None:
    """Return the largest delay of real-time chunking in training.

    None if the checkpoint does not record it.
    """
    path = step_dir / _METADATA_FILE
    try:
        metadata = json.loads(path.read_text()) if path.is_file() else None
    except ValueError as e:
        raise DataError(f"{path}: not JSON ({e}). Copy the checkpoint again") from e
    return ((metadata or {}).get("custom_metadata") or {}).get(RTC_MAX_DELAY_KEY)


def _asset_ids(step_dir: pathlib.Path) -> list[str]:
    assets = step_dir / ASSETS_DIR
    return sorted(str(path.parent.relative_to(assets)) for path in assets.rglob(normalize.FILE_NAME))


def _runs(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.iterdir() if complete_steps(path)] if folder.is_dir() else []


def _last_saved(run: pathlib.Path) -> float:
    return max((run / str(step)).stat().st_mtime for step in complete_steps(run))


def _describe(folder: pathlib.Path) -> str:
    """Describe the folder, so that the right one is easy to find."""
    if folder.name == PARAMS_DIR:
        return f"use the folder above it: '{folder.parent}'"
    if not folder.is_dir():
        return "it is a file"
    names = sorted(path.name for path in folder.iterdir())
    return "found " + ", ".join(f"'{name}'" for name in names[:10]) if names else "it is empty"
