"""Store the config of a run, and check it on resume."""

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import json
import logging
import pathlib
from typing import Any

import tyro

from openpi.shared import errors
from openpi.training.configs import renamed
from openpi.training.configs.train_config import TrainConfig

logger = logging.getLogger(__name__)

FILE_NAME = "config.json"

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
# Fields that give the parameters their meaning. A run that continued with another value would be neither the old run nor a
# new one.
_FIXED = ("name", "model", "data", "freeze_filter", "freeze_image_tower")
# Exceptions that may change: where files are, what changes no number, and what only a server uses.
_FREE = ("data.assets.assets_dir", "data.keep_images", "data.default_prompt", "model.pytorch_compile_mode")
# Fields that each command decides for itself.
_PER_COMMAND = ("overwrite", "resume", "process_id", "coordinator_address")


def to_plain(value: Any) -> Any:
    """Return a value in a form that JSON can hold.

    Dataclasses become dicts with their class as `type`.
    """
    if value is tyro.MISSING:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__"):  # the filters of nnx
        return {"type": type(value).__name__, **{key: to_plain(item) for key, item in vars(value).items()}}
    return str(value)


def store(config: TrainConfig, directory: pathlib.Path, *, step: int = 0) -> pathlib.Path:
    """Write the config of a run and return its path.

    The file also lists each change since the start of the run with its step.

    Args:
        config: The resolved config.
        directory: Folder of the run.
        step: First step with this config.
    """
    path = directory / FILE_NAME
    before = _load(path)
    changes = list(before.get("changes", []))
    if changed := _differences(before.get("config"), config):
        changes.append({"step": step, "changed": changed})
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    text = json.dumps({"config": to_plain(config), "versions": versions, "changes": changes}, indent=2)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)
    return path


def check_resume(config: TrainConfig, directory: pathlib.Path) -> None:
    """Compare a config with the one that a run was started with.

    Allowed differences are logged.

    Raises:
        ConfigError: A field differs that must not change.
    """
    changed = _differences(_load(directory / FILE_NAME).get("config"), config)
    refused = [line for key, line in changed.items() if _is_fixed(key)]
    if refused:
        raise errors.ConfigError(
            f"{directory}: this run was started with another config ({'; '.join(refused[:4])}). "
            "Resume with the flags that it was started with, or choose another --exp-name"
        )
    if changed:
        logger.warning("the run continues with other values: %s", "; ".join(changed.values()))


def _is_fixed(key: str) -> bool:
    return key.split(".")[0] in _FIXED and not key.startswith(_FREE)


def _load(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or not isinstance(stored.get("config", {}), dict):
            raise ValueError("expected an object with the object 'config'")
    except ValueError as e:
        raise errors.DataError(f"{path}: not the config of a run ({e}). Delete it to continue without it") from e
    return stored


def _differences(before: Any, config: TrainConfig) -> dict[str, str]:
    """Return `key: before -> now` for each field that differs.

    Keys are dotted. Only fields of both configs count, because a newer program may know more fields.
    """
    if before is None:
        return {}
    old, new = _flat(renamed.rename_fields(before)), _flat(json.loads(json.dumps(to_plain(config))))
    return {
        key: f"{key}: {old[key]} -> {new[key]}"
        for key in old.keys() & new.keys()
        if old[key] != new[key] and key not in _PER_COMMAND
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat
