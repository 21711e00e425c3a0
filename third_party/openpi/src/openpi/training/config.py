"""The registry of training configs, and the one import that gives every name a config needs.

`get_config(name)` looks one up, `cli()` parses `<name> --flags` into one. The definitions live in the leaf modules
imported here.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import sys

import tyro

from openpi.shared import errors
from openpi.training.configs import debug as _debug_configs
from openpi.training.configs import robots as _robot_configs
from openpi.training.configs.data_config import AssetsConfig
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.data_config import DataConfigFactory
from openpi.training.configs.data_config import FakeDataConfig
from openpi.training.configs.data_config import GroupFactory
from openpi.training.configs.data_config import ModelTransformFactory
from openpi.training.configs.data_config import SimpleDataConfig
from openpi.training.configs.robot_data_config import LeRobotAlohaDataConfig
from openpi.training.configs.robot_data_config import LeRobotDROIDDataConfig
from openpi.training.configs.robot_data_config import LeRobotLiberoDataConfig
from openpi.training.configs.train_config import TrainConfig

__all__ = [
    "AssetsConfig",
    "DataConfig",
    "DataConfigFactory",
    "FakeDataConfig",
    "GroupFactory",
    "LeRobotAlohaDataConfig",
    "LeRobotDROIDDataConfig",
    "LeRobotLiberoDataConfig",
    "ModelTransformFactory",
    "SimpleDataConfig",
    "TrainConfig",
    "cli",
    "get_config",
    "with_flags",
]

_CONFIGS: list[TrainConfig] = [*_robot_configs.get_configs(), *_debug_configs.get_configs()]

# A robot's configs subclass DataConfigFactory, so their module imports this one: it is imported down here, when
# every name above exists (openpi/training/misc/__init__.py keeps the order right when that module is asked for first).
import openpi.training.misc.realman_config as _realman_config  # noqa: E402

_CONFIGS.extend(getattr(_realman_config, "REALMAN_CONFIGS", []))

from openpi.training.configs import debug_realman as _debug_realman_configs  # noqa: E402

_CONFIGS.extend(_debug_realman_configs.get_configs())

if len({config.name for config in _CONFIGS}) != len(_CONFIGS):
    raise ValueError("config names must be unique")
_CONFIGS_DICT = {config.name: config for config in _CONFIGS}


def cli() -> TrainConfig:
    """Parse the command line `<config name> [--flags]`: the flags override the registered config's values.

    Raises:
        ConfigError: No such config; the message suggests the nearest name, where tyro would list them all.
    """
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        get_config(sys.argv[1])
    return tyro.extras.overridable_config_cli({name: (name, config) for name, config in _CONFIGS_DICT.items()})


def with_flags(config: TrainConfig, flags: Sequence[str]) -> TrainConfig:
    """Override values of a config as the command line of training does, for example `["--data.arm-order", "left_right"]`."""
    if not flags:
        return config
    # A name of the run is asked for in training only.
    named = config if config.exp_name is not tyro.MISSING else dataclasses.replace(config, exp_name=config.name)
    parsed = tyro.cli(tyro.conf.AvoidSubcommands[type(config)], default=named, args=list(flags))
    return dataclasses.replace(parsed, exp_name=config.exp_name)


def get_config(config_name: str) -> TrainConfig:
    """Look up a registered config.

    Raises:
        ConfigError: No such name; the message suggests the nearest one.
    """
    if config_name not in _CONFIGS_DICT:
        nearest = difflib.get_close_matches(config_name, _CONFIGS_DICT, n=1, cutoff=0.0)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise errors.ConfigError(f"Config '{config_name}' not found.{hint}")
    return _CONFIGS_DICT[config_name]
