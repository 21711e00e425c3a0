"""Finds its way in a folder of checkpoints: `<step>/{params,train_state,assets/<asset_id>/norm_stats.json}`."""

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
"""Key of the checkpoint's own metadata: the model config's field, as it was in training."""

# Where orbax keeps the metadata of a checkpoint.
_METADATA_FILE = "_CHECKPOINT_METADATA"

# What the original project's PyTorch trainer writes instead of `params`.
_PYTORCH_WEIGHTS = "model.safetensors"


def resolve(checkpoint_dir: pathlib.Path | str) -> pathlib.Path:
    """Return the local folder of one step.

    Args:
        checkpoint_dir: A step's folder; a run's folder, which stands for its newest step; or a folder of runs, which
            stands for the run that was saved last. Local or remote.

    Raises:
        MissingFileError: it does not exist, or holds no parameters; the message says what was found.
        DataError: it holds a checkpoint of PyTorch.
    """
    # A run's link "best" stands for the step that it leads to.
    folder = pathlib.Path(download.maybe_download(str(checkpoint_dir))).resolve()
    if (folder / PARAMS_DIR).is_dir():
        return folder
    if (folder / _PYTORCH_WEIGHTS).is_file():
        raise DataError(
            f"{folder}: a PyTorch checkpoint ('{_PYTORCH_WEIGHTS}'), expected a JAX one with '{PARAMS_DIR}/'"
        )
    if runs := _runs(folder):
        folder = max(runs, key=_last_saved)
        logger.info("%d run(s) there; using the one saved last, %s", len(runs), folder)
    if steps := complete_steps(folder):
        newest = folder / str(max(steps))
        logger.info("%s holds %d checkpoints; using the newest, step %d", folder, len(steps), max(steps))
        return newest
    raise MissingFileError(f"{folder}: not a checkpoint, '{PARAMS_DIR}/' is missing ({_describe(folder)})")


def asset_id_in(step_dir: pathlib.Path, asset_id: str | None) -> str | None:
    """Return where below its assets a checkpoint has its statistics.

    Args:
        step_dir: A step's folder.
        asset_id: Where they should be. If they are not, but the checkpoint has statistics in one other place only, those are
            meant: it was trained under another id.
    """
    found = _asset_ids(step_dir)
    if asset_id in found or len(found) != 1:
        return asset_id
    logger.warning("%s: no norm stats of '%s'; using its only ones, of '%s'", step_dir, asset_id, found[0])
    return found[0]


def find_norm_stats(step_dir: pathlib.Path, asset_id: str | None) -> pathlib.Path:
    """Return the folder of the statistics that were saved beside the parameters; see `asset_id_in`.

    Raises:
        MissingFileError: there are none, or several and none under `asset_id`; the message lists them.
    """
    assets, asset_id = step_dir / ASSETS_DIR, asset_id_in(step_dir, asset_id)
    if asset_id is not None and (assets / asset_id / normalize.FILE_NAME).is_file():
        return assets / asset_id
    listed = ", ".join(f"'{name}'" for name in _asset_ids(step_dir)) or "none"
    raise MissingFileError(
        f"{assets}: no norm stats of '{asset_id}' (found: {listed}); set the config's assets.asset_id to one of them, or "
        "train with statistics, which are then saved with each checkpoint"
    )


def load_norm_stats(step_dir: pathlib.Path, asset_id: str | None) -> dict[str, normalize.NormStats]:
    """Read the statistics that were saved beside the parameters; see `find_norm_stats`."""
    return normalize.load(find_norm_stats(step_dir, asset_id))


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Return the steps of a run's folder that hold parameters; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal() and (path / PARAMS_DIR).is_dir()]


def step_of(step_dir: pathlib.Path) -> int | None:
    """Return the training step of a step's folder; None when it bears another name."""
    return int(step_dir.name) if step_dir.name.isdecimal() else None


def rtc_max_delay(step_dir: pathlib.Path) -> int | None:
    """Return the longest delay of real-time chunking that the model was trained for; None where the checkpoint is silent."""
    path = step_dir / _METADATA_FILE
    try:
        metadata = json.loads(path.read_text()) if path.is_file() else None
    except ValueError as e:
        raise DataError(f"{path}: not JSON ({e}); copy the checkpoint again") from e
    return ((metadata or {}).get("custom_metadata") or {}).get(RTC_MAX_DELAY_KEY)


def _asset_ids(step_dir: pathlib.Path) -> list[str]:
    assets = step_dir / ASSETS_DIR
    return sorted(str(path.parent.relative_to(assets)) for path in assets.rglob(normalize.FILE_NAME))


def _runs(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.iterdir() if complete_steps(path)] if folder.is_dir() else []


def _last_saved(run: pathlib.Path) -> float:
    return max((run / str(step)).stat().st_mtime for step in complete_steps(run))


def _describe(folder: pathlib.Path) -> str:
    """Say what the folder is instead, so that the right one is easy to find."""
    if folder.name == PARAMS_DIR:
        return f"give the folder above it: '{folder.parent}'"
    if not folder.is_dir():
        return "it is a file"
    names = sorted(path.name for path in folder.iterdir())
    return "found " + ", ".join(f"'{name}'" for name in names[:10]) if names else "it is empty"
