"""Compare the names of a dataset's numbers with a config."""

from collections.abc import Mapping, Sequence
import logging
from typing import Protocol, runtime_checkable

import flax.traverse_util

from openpi.shared import errors
from openpi.training.configs.data_config import DataConfig
from openpi.training.lerobot.metadata import LeRobotMetadata
import openpi.transforms as _transforms

logger = logging.getLogger(__name__)

# What was said already. One run opens a dataset several times.
_said: set[str] = set()


@runtime_checkable
class ChecksNames(Protocol):
    """A transform that knows which number is which."""

    def check_names(self, names: Mapping[str, Sequence[str]]) -> str | None:
        """Compare names with what the transform expects.

        Args:
            names: The names of the numbers by key of a sample. Empty where the dataset states none.

        Returns:
            What is assumed, if the names do not say. None if they agree.

        Raises:
            ValueError: They contradict the transform. The message names the remedy.
        """
        ...


def check(data_config: DataConfig, metadata: LeRobotMetadata) -> None:
    """Check the names of a dataset with those transforms that know them.

    What is assumed is said once.

    Raises:
        DataError: The names contradict the config.
    """
    first = next(iter(data_config.repack_transforms.inputs), None)
    if not isinstance(first, _transforms.RepackTransform):
        return
    sources = flax.traverse_util.flatten_dict(dict(first.structure), sep="/")
    names = {key: metadata.stated_names(source) for key, source in sources.items() if source in metadata.number_keys}
    place = f"{metadata.root}/meta/info.json"
    for transform in data_config.data_transforms.inputs:
        if not isinstance(transform, ChecksNames):
            continue
        try:
            assumed = transform.check_names(names)
        except ValueError as e:
            raise errors.DataError(f"{place}: {e}") from e
        if assumed and f"{place}: {assumed}" not in _said:
            _said.add(f"{place}: {assumed}")
            logger.warning("%s: %s", place, assumed)
