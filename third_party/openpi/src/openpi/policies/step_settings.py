"""The settings that give a model's numbers their meaning.

They are the model and data settings of the training, with every flag: order of the arms, deltas, cameras, horizon, rate,
normalization. `<step>/assets/settings.json` holds them, so they travel with a step that is copied alone. Openpi's own programs
read only the statistics in `assets/` and do not notice the file.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from openpi.policies import checkpoint_folder
from openpi.shared import errors
from openpi.training.configs.data_config import MAX_FPS
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig

FILE_NAME = "settings.json"

FORMAT = "openpi-step-settings"
VERSION = 1
"""Increased when older programs can no longer read the file."""

QUANTILES, Z_SCORES = "quantiles", "z-scores"
"""How statistics are applied."""

ONLY_TRAINING = frozenset(("mixture", "validation", "reduced_jpeg", "keep_images"))
"""Fields of a data config that control how frames are chosen and read. A policy does not depend on them."""

_OF_THE_DATASET = frozenset(("repo_id", "assets", "base_config"))


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Settings as recorded, for `run_settings.follow`."""

    source: str
    """The file, for messages."""
    config: str
    """Name of the training config."""
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    fps: float | None = None
    """Frames per second of the data. None if unknown."""
    normalization: str | None = None
    """`QUANTILES` or `Z_SCORES`. None leaves it to the model's type."""
    asset_id: str | None = None
    """Subfolder of the assets that has the statistics. None leaves it to the config."""


def describe(config: TrainConfig, data_config: DataConfig) -> dict[str, Any]:
    """Return what a step's file says, as plain values.

    Args:
        config: The resolved config of the run.
        data_config: Its data config. It knows the rate of its opened datasets.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": config.name,
        "model": describe_fields(config.model),
        "data": describe_data(config),
        "fps": data_config.fps,
        "normalization": normalization_of(data_config),
        "asset_id": data_config.asset_id,
        # For people and other programs. A server derives it again.
        "contract": contract(config, data_config.fps),
    }


def write(assets_dir: pathlib.Path, described: Mapping[str, Any]) -> None:
    """Write the result of `describe` into the assets folder of a step."""
    assets_dir.mkdir(parents=True, exist_ok=True)
    (assets_dir / FILE_NAME).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def find(step_dir: pathlib.Path) -> StepSettings | None:
    """Read the settings in a step's folder, or return None without any.

    Raises:
        DataError: The file is damaged or has a newer version.
    """
    path = step_dir / checkpoint_folder.ASSETS_DIR / FILE_NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"found format {content['format']!r:.40}, expected '{FORMAT}'")
        if content["version"] > VERSION:
            raise errors.DataError(
                f"{path}: found version {content['version']}, expected at most {VERSION}. Update this program"
            )
        return _checked(path, content)
    except errors.DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise errors.DataError(
            f"{path}: not the settings of a step ({type(e).__name__}: {e}). Copy the checkpoint again"
        ) from e


def _checked(path: pathlib.Path, content: Mapping[str, Any]) -> StepSettings:
    for key, kind in {"config": str, "model": dict, "data": dict}.items():
        if not isinstance(content[key], kind):
            raise TypeError(f"'{key}' is {content[key]!r:.40}")
    if content["normalization"] not in (QUANTILES, Z_SCORES):
        raise ValueError(f"'normalization' is {content['normalization']!r:.40}")
    if not isinstance(content["asset_id"], str | None):
        raise TypeError(f"'asset_id' is {content['asset_id']!r:.40}")
    asset = pathlib.PurePosixPath(content["asset_id"] or "")
    if asset.is_absolute() or ".." in asset.parts:
        raise ValueError(f"'asset_id' names {content['asset_id']!r:.80}, outside the step")
    return StepSettings(
        str(path),
        content["config"],
        content["model"],
        content["data"],
        checked_fps(content["fps"]),
        content["normalization"],
        content["asset_id"],
    )


def checked_fps(value: Any) -> float | None:
    """Return a recorded rate.

    Raises:
        ValueError: It is neither None nor a number from above 0 to `MAX_FPS`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= MAX_FPS):
        raise ValueError(f"'fps' is {value!r:.40}, expected a positive number up to {MAX_FPS:g}")
    return value


def contract(config: TrainConfig, fps: float | None) -> dict[str, Any] | None:
    """Return the metadata for clients, as these settings make it.

    The config's own metadata says which keys there are.

    Args:
        config: The config, with the settings of the training.
        fps: Rate of the data. None keeps the rate in the config's metadata.
    """
    if config.policy_metadata is None:
        return None
    horizon = config.model.action_horizon
    # What follows from the settings replaces what the registered config says.
    follows = {"action_horizon": horizon, **config.data.contract()}
    if fps is not None:
        follows["fps"] = int(fps) if float(fps).is_integer() else fps
    metadata = {key: follows.get(key, value) for key, value in config.policy_metadata.items()}
    if "action_chunk" in metadata:
        metadata["action_chunk"] = min(metadata["action_chunk"], horizon)
    return metadata


def describe_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that JSON can hold.

    They are plain values, dataclasses, and lists and dicts of those.
    """
    fields = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {name: value for name, value in fields.items() if value is not _NOT_PLAIN}


def describe_data(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of the data config that serving depends on.

    The dataset is not one of them.
    """
    left_out = ONLY_TRAINING | _OF_THE_DATASET
    return {name: value for name, value in describe_fields(config.data).items() if name not in left_out}


def normalization_of(data_config: DataConfig) -> str:
    """Return how statistics are applied."""
    return QUANTILES if data_config.use_quantile_norm else Z_SCORES


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe_fields(value)
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items) else items
    if isinstance(value, Mapping):
        return {str(key): item for key, v in value.items() if (item := _plain(v)) is not _NOT_PLAIN}
    return _NOT_PLAIN
