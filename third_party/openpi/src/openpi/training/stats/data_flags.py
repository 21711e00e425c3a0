"""Build the command that computes the statistics of a config.

Its flags are those values of the config that differ from the registered config of the same name.
"""

import dataclasses
import shlex
from typing import Any

from openpi.training import config as _config
from openpi.training.configs.mixture import MixedDataset
from openpi.training.configs.train_config import TrainConfig

# Fields that statistics do not depend on, or that the command has a variable for.
_LEFT_OUT = frozenset({"repo_id", "validation", "default_prompt", "base_camera", "reduced_jpeg", "keep_images"})


def norm_stats_command(config: TrainConfig) -> str:
    """Return the command that computes the statistics of a training."""
    flags = _data_flags(config)
    arguments = f' ARGS="{" ".join(flags)}"' if flags else ""
    return f"make norm-stats CONFIG={config.name} REPO_ID={shlex.quote(config.data.repo_id)}{arguments}"


def _data_flags(config: TrainConfig) -> list[str]:
    try:
        registered = _config.get_config(config.name)
    except ValueError:
        return []
    flags = _flags("data", config.data, registered.data)
    if config.model.action_horizon != registered.model.action_horizon:
        flags.append(f"--model.action-horizon {config.model.action_horizon}")
    if config.assets_base_dir != registered.assets_base_dir:
        flags.append(f"--assets-base-dir {shlex.quote(config.assets_base_dir)}")
    return flags


def _flags(prefix: str, value: Any, default: Any) -> list[str]:
    """Return a flag for each field that differs from its default."""
    if type(value) is not type(default):
        return []
    flags = []
    for field in dataclasses.fields(value):
        ours, theirs = getattr(value, field.name), getattr(default, field.name)
        if field.name in _LEFT_OUT or ours == theirs:
            continue
        name = f"{prefix}.{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(ours) and not isinstance(ours, MixedDataset):
            flags += _flags(name, ours, theirs)
        elif isinstance(ours, bool):
            flags.append(f"--{name}" if ours else f"--{prefix}.no-{field.name.replace('_', '-')}")
        else:
            words = ours if isinstance(ours, tuple | list) else (ours,)
            flags.append(" ".join([f"--{name}", *(shlex.quote(str(word)) for word in words)]))
    return flags
