"""Serve a policy with the settings of its training run.

These are the model and data settings. A registered config has defaults. The changes of a run, including its command line (another horizon, another base camera),
are recorded next to its checkpoints and in bundles. A server that used the defaults instead would send other motions to the
robot without an error.
"""

from collections.abc import Mapping
import dataclasses
import json
import logging
import pathlib
from typing import Any

from openpi.policies import checkpoint_folder
from openpi.shared import errors
from openpi.training.configs import renamed
from openpi.training.configs.train_config import TrainConfig
from openpi.training.run import run_config

logger = logging.getLogger(__name__)

ONLY_TRAINING = frozenset(("mixture", "validation", "reduced_jpeg", "keep_images"))
"""Fields of a data config that control how frames are chosen and read. A policy does not depend on them."""


def as_trained(config: TrainConfig, step_dir: pathlib.Path) -> TrainConfig:
    """Return the config with the settings of a step's training run.

    It is unchanged if no settings are recorded.

    Raises:
        DataError: The run's file is damaged.
        ConfigError: This program does not know a setting.
    """
    config = _as_its_run(config, step_dir)
    # Recorded in the step itself, so that it is known even if only the step was copied.
    max_delay = checkpoint_folder.rtc_max_delay(step_dir)
    if max_delay is None or not hasattr(config.model, "rtc_max_delay"):
        return config
    changes: dict[str, Any] = {"rtc_max_delay": max_delay}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _as_its_run(config: TrainConfig, step_dir: pathlib.Path) -> TrainConfig:
    path = step_dir.parent / run_config.FILE_NAME
    if not path.is_file():
        return config
    try:
        recorded = json.loads(path.read_text())["config"]
        name, parts = recorded["name"], {part: dict(recorded[part]) for part in ("model", "data")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise errors.DataError(
            f"{path}: not the config of a run ({type(e).__name__}: {e}). Delete it to continue without it"
        ) from e
    if name != config.name:
        logger.warning("%s: trained with config '%s', but used with '%s'", step_dir, name, config.name)
        return config
    return apply(config, parts["model"], parts["data"], source=str(path))


def apply(config: TrainConfig, model: Mapping[str, Any], data: Mapping[str, Any], *, source: str) -> TrainConfig:
    """Return the config with recorded values in its model and data.

    Args:
        config: Registered defaults.
        model: Recorded fields of the model config, as in JSON. Absent fields keep their default.
        data: The same for the data config.
        source: Name of the record, for messages.

    Raises:
        ConfigError: A recorded value does not fit its field.
    """
    # Model and data settings, under the names that their fields have now.
    changes: list[str] = []
    model, data = renamed.rename_fields(model), renamed.rename_fields(data)
    try:
        changed_model = _with(config.model, model, "model", changes)
        served = {name: value for name, value in data.items() if name not in ONLY_TRAINING}
        if getattr(config.data, "default_prompt", None) is not None:
            served.pop("default_prompt", None)  # the current default of a server has priority
        changed_data = _with(config.data, served, "data", changes)
    except (errors.UserError, TypeError, ValueError) as e:
        raise errors.ConfigError(
            f"{source}: does not fit config '{config.name}' ({e}). Serve it with the program version that made it"
        ) from e
    if not changes:
        return config
    # The metadata repeats some of them for clients.
    logger.info("settings of the training run: %s", ", ".join(changes))
    metadata = _metadata(config, changed_model.action_horizon, getattr(changed_data, "base_camera", None))
    return dataclasses.replace(config, model=changed_model, data=changed_data, policy_metadata=metadata)


def _with(value: Any, recorded: Mapping[str, Any], place: str, changes: list[str]) -> Any:
    """Replace fields of a dataclass with recorded values.

    Fields that are not plain values (functions, transforms) keep the program's values.
    """
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if unknown := sorted(recorded.keys() - fields.keys() - {"type"}):
        raise errors.ConfigError(f"{place} has no '{unknown[0]}'")
    replaced = {}
    for name, current in fields.items():
        if name not in recorded:
            continue
        wanted, where = recorded[name], f"{place}.{name}"
        if dataclasses.is_dataclass(current) and isinstance(wanted, Mapping):
            replaced[name] = _with(current, wanted, where, changes)
        elif _is_plain(current) and _is_plain(wanted) and _json(current) != wanted:
            changes.append(f"{where} {wanted!r} instead of {current!r}")
            replaced[name] = tuple(wanted) if isinstance(current, tuple) else wanted
        elif isinstance(current, str) != isinstance(wanted, str) and (
            dataclasses.is_dataclass(current) or isinstance(wanted, Mapping)
        ):
            # A size that was given by name and now is a dataclass, or the reverse.
            if not isinstance(wanted, str):
                raise errors.ConfigError(f"{where} was not a registered name")
            changes.append(f"{where} {wanted!r}")
            replaced[name] = wanted
    return dataclasses.replace(value, **replaced) if replaced else value


def _is_plain(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and all(isinstance(item, bool | int | float | str) for item in value)
    return value is None or is_list or isinstance(value, bool | int | float | str)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _metadata(config: TrainConfig, action_horizon: int, base_camera: str | None) -> dict[str, Any] | None:
    """Return the metadata for clients.

    Values that follow from these settings are updated.
    """
    if config.policy_metadata is None:
        return None
    metadata = dict(config.policy_metadata)
    if "action_horizon" in metadata:
        metadata["action_horizon"] = action_horizon
    if "action_chunk" in metadata:
        metadata["action_chunk"] = min(metadata["action_chunk"], action_horizon)
    before = getattr(config.data, "base_camera", None)
    if "cameras" in metadata and base_camera is not None:
        metadata["cameras"] = [base_camera if camera == before else camera for camera in metadata["cameras"]]
    return metadata
