"""Serve a policy with the settings of its training.

These are the model and data settings. A registered config has defaults. The changes of a run, including its command line (another horizon, another base camera),
are recorded in each step (`step_settings`), next to the steps of a run and in bundles. A server that used the defaults instead
would send other motions to the robot without an error.
"""

from collections.abc import Mapping
import dataclasses
import json
import logging
import pathlib
from typing import Any

from openpi.policies import checkpoint_folder
from openpi.policies import step_settings
from openpi.policies.step_settings import ONLY_TRAINING
from openpi.policies.step_settings import StepSettings
from openpi.shared import errors
from openpi.training.configs import renamed
from openpi.training.configs.train_config import TrainConfig
from openpi.training.run import run_config

logger = logging.getLogger(__name__)

_NAMED_CHANGES = 4


def recorded(step_dir: pathlib.Path) -> StepSettings | None:
    """Return the settings that a step was trained with.

    The step's own file has priority over the file next to the steps of a run. Older and foreign checkpoints have neither.

    Raises:
        DataError: The file is damaged.
    """
    return step_settings.find(step_dir) or _of_the_run(step_dir)


def as_trained(config: TrainConfig, step_dir: pathlib.Path) -> TrainConfig:
    """Return the config with the settings of a step's training.

    It is unchanged if no settings are recorded.

    Raises:
        DataError: The file with the settings is damaged.
        ConfigError: This program does not know a setting, or the config contradicts the settings.
    """
    return follow(config, recorded(step_dir), step_dir)


def follow(config: TrainConfig, settings: StepSettings | None, step_dir: pathlib.Path) -> TrainConfig:
    """Return the config with recorded settings. Errors are those of `as_trained`."""
    if settings is not None:
        config = _follow(config, settings, step_dir)
    # Real-time chunking was recorded in the step before the other settings were.
    max_delay = checkpoint_folder.rtc_max_delay(step_dir)
    if max_delay is None or not hasattr(config.model, "rtc_max_delay"):
        return config
    changes: dict[str, Any] = {"rtc_max_delay": max_delay}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _follow(config: TrainConfig, settings: StepSettings, step_dir: pathlib.Path) -> TrainConfig:
    if settings.config == config.name:
        return apply(config, settings.model, settings.data, source=settings.source)[0]
    # Another config is fine as long as it means the same. Where it reads a dataset does not matter.
    remedy = f"Use the config '{settings.config}'"
    data = {name: value for name, value in settings.data.items() if name not in ("repo_id", "assets")}
    try:
        _, changes = apply(config, settings.model, data, source=settings.source)
    except errors.ConfigError as e:
        raise errors.ConfigError(
            f"{step_dir}: trained with config '{settings.config}', found config '{config.name}', which does not fit. {remedy}"
        ) from e
    if changes:
        more = f" and {len(changes) - _NAMED_CHANGES} more" if len(changes) > _NAMED_CHANGES else ""
        raise errors.ConfigError(
            f"{step_dir}: trained with config '{settings.config}', found config '{config.name}', which contradicts it "
            f"({', '.join(changes[:_NAMED_CHANGES])}{more}). {remedy}"
        )
    logger.info("%s: trained with config '%s', which means the same as '%s'", step_dir, settings.config, config.name)
    return config


def _of_the_run(step_dir: pathlib.Path) -> StepSettings | None:
    path = step_dir.parent / run_config.FILE_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())["config"]
        name, parts = content["name"], {part: dict(content[part]) for part in ("model", "data")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise errors.DataError(
            f"{path}: not the config of a run ({type(e).__name__}: {e}). Delete it to continue without it"
        ) from e
    return StepSettings(str(path), name, parts["model"], parts["data"])


def apply(
    config: TrainConfig, model: Mapping[str, Any], data: Mapping[str, Any], *, source: str
) -> tuple[TrainConfig, list[str]]:
    """Return the config with recorded values in model and data.

    The second result lists what changed.

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
    if changes:
        logger.info("settings of the training run: %s", ", ".join(changes))
    return dataclasses.replace(config, model=changed_model, data=changed_data), changes


def _with(value: Any, recorded: Mapping[str, Any], place: str, changes: list[str]) -> Any:
    """Replace fields of a dataclass with recorded values.

    Fields that are not plain values (functions, transforms) keep the program's values.
    """
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    optional = {field.name for field in dataclasses.fields(value) if field.default is None}
    if unknown := sorted(recorded.keys() - fields.keys() - {"type"}):
        raise errors.ConfigError(f"{place} has no '{unknown[0]}'")
    replaced = {}
    for name, current in fields.items():
        if name not in recorded:
            continue
        wanted, where = recorded[name], f"{place}.{name}"
        if dataclasses.is_dataclass(current) and isinstance(wanted, Mapping):
            replaced[name] = _with(current, wanted, where, changes)
        elif _is_plain(current) and _is_plain(wanted) and not _is_same(current, wanted):
            if not (wanted is None and name in optional):
                _check_type(current, wanted, where)
            changes.append(f"{where} {wanted!r} instead of {current!r}")
            replaced[name] = tuple(wanted) if isinstance(current, tuple) else wanted
        elif (
            isinstance(current, bool | int | float | str)
            and isinstance(wanted, list | dict)
            and not _names_size(current, wanted)
        ):
            _check_type(current, wanted, where)
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


def _names_size(current: Any, wanted: Any) -> bool:
    # A model's size is a registered name, or its numbers.
    return isinstance(current, str) and isinstance(wanted, Mapping)


def _is_same(current: Any, wanted: Any) -> bool:
    # True equals 1, but does not mean the same.
    value = list(current) if isinstance(current, tuple) else current
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _check_type(current: Any, wanted: Any, where: str) -> None:
    """Refuse a recorded value of another type than the field's.

    The text "false" would count as true.

    Raises:
        ConfigError: It has another type.
    """
    for kind, words in {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.items():
        if isinstance(current, kind):
            is_number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
            is_right = isinstance(wanted, kind) and isinstance(wanted, bool) == (kind is bool)
            if not (is_right or (kind is float and is_number)):
                raise errors.ConfigError(f"{where} is {wanted!r:.40}, expected {words}")
            return
