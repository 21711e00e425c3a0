"""The registry of training configs.

This module is also the one import for every name that a config needs. `get_config(name)` looks a config up, and `cli()`
parses `<name> --flags` into one. The definitions are in `configs/`, and those of the robot are in `misc/`.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import functools
import sys

import tyro

from openpi.shared import errors
from openpi.training.configs import renamed as _renamed
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
    "all_configs",
    "cli",
    "get_config",
    "with_flags",
]


@functools.cache
def all_configs() -> dict[str, TrainConfig]:
    """Return every registered config by its name.

    The registry is built at the first call, because a robot's configs derive from classes of this module and are therefore
    imported after it.

    Raises:
        ValueError: Two configs have the same name.
    """
    from openpi.training.configs import debug
    from openpi.training.configs import robots
    from openpi.training.misc import debug_realman
    from openpi.training.misc import realman_config

    sources = (robots.get_configs, debug.get_configs, realman_config.get_realman_configs, debug_realman.get_configs)
    configs: dict[str, TrainConfig] = {}
    for config in (config for get_configs in sources for config in get_configs()):
        if config.name in configs:
            raise ValueError(f"two training configs are named '{config.name}', but names must be unique")
        configs[config.name] = config
    return configs


def cli() -> TrainConfig:
    """Parse the command line `<config name> [--flags]`.

    The flags override the values of the registered config.

    Raises:
        ConfigError: There is no such config. The message suggests the nearest name, where tyro would list all of them.
    """
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        get_config(sys.argv[1])
    configs = {name: (name, config) for name, config in all_configs().items()}
    return tyro.extras.overridable_config_cli(configs, args=_renamed.rename_flags(sys.argv[1:]))


def with_flags(config: TrainConfig, flags: Sequence[str]) -> TrainConfig:
    """Override values of a config as the command line of training does.

    An example of `flags` is `["--data.arm-order", "left_right"]`.
    """
    if not flags:
        return config
    # Only training requires a name for the run.
    named = config if config.exp_name is not tyro.MISSING else dataclasses.replace(config, exp_name=config.name)
    parsed = tyro.cli(tyro.conf.AvoidSubcommands[type(config)], default=named, args=_renamed.rename_flags(flags))
    return dataclasses.replace(parsed, exp_name=config.exp_name)


def get_config(config_name: str) -> TrainConfig:
    """Look up a registered config.

    Raises:
        ConfigError: There is no such config. The message suggests the nearest name.
    """
    configs = all_configs()
    if config_name not in configs:
        nearest = difflib.get_close_matches(config_name, configs, n=1, cutoff=0.0)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise errors.ConfigError(f"config '{config_name}' not found.{hint}")
    return configs[config_name]
