"""Resize images before the transforms, where the result is the same.

What comes out no longer depends on the transforms, and is worth keeping on disk.
"""

from collections.abc import Sequence
import functools
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from openpi.training.configs.data_config import DataConfig
from openpi.training.host import free_space
from openpi.training.lerobot.dataset import LeRobotDataset
from openpi.training.lerobot.fitted_images import FittedImages
import openpi.transforms as _transforms
from openpi_client import image_tools

logger = logging.getLogger(__name__)

_GIB = 2**30
_RGB_BYTES = 3


def fit_early(
    dataset: LeRobotDataset, data_config: DataConfig, *, leave_room: free_space.Claim | None = None
) -> LeRobotDataset:
    """Return the dataset with images in the model's size, kept on disk.

    One frame is tried both ways. The dataset is returned as it is if the config's transforms depend on the size of an
    image (a crop), or if none of them resizes.

    Args:
        dataset: The dataset, with images in their own size.
        data_config: The config with the transforms.
        leave_room: Space that kept images must leave free.

    Raises:
        DataError: The frame's images cannot be decoded.
    """
    chain = _until_resized(data_config)
    if not data_config.keep_images or chain is None or not dataset.image_keys:
        return dataset
    size = (chain[-1].height, chain[-1].width)
    if not _gives_the_same(dataset, _transforms.compose(chain), size):
        logger.info("%s: no images are kept, because the config's transforms depend on their size", dataset.meta.root)
        return dataset
    variant = "_reduced" if data_config.reduced_jpeg else ""
    keep_free = leave_room.on_disk_of(dataset.meta.root) if leave_room else 0
    images = FittedImages(dataset.meta, size, keep_free=keep_free, variant=variant)
    _log_once(images.folder, len(dataset) * len(dataset.image_keys) * _RGB_BYTES * size[0] * size[1] / _GIB)
    return dataset.with_fitted(images)


@functools.cache
def _log_once(folder: pathlib.Path, gib: float) -> None:
    """Log once per folder, because training and validation use the same one."""
    logger.info(
        "%s: images are kept as the model sees them, up to %.1f GiB. --data.no-keep-images decodes them each time",
        *(folder, gib),
    )


def _until_resized(data_config: DataConfig) -> Sequence[Any] | None:
    """Return the transforms up to the one that resizes.

    None if no transform resizes.
    """
    model = list(data_config.model_transforms.inputs)
    resizes = [i for i, transform in enumerate(model) if isinstance(transform, _transforms.ResizeImages)]
    if not resizes:
        return None
    groups = (data_config.repack_transforms, data_config.data_transforms)
    return [transform for group in groups for transform in group.inputs] + model[: resizes[0] + 1]


def _gives_the_same(dataset: LeRobotDataset, chain: _transforms.DataTransformFn, size: tuple[int, int]) -> bool:
    """Return whether the first frame stays the same with early resizing."""
    whole = {"prompt": "", **dataset[0]}
    fitted = {
        key: image_tools.resize_with_pad(whole[key].transpose(1, 2, 0), *size).transpose(2, 0, 1)
        for key in dataset.image_keys
    }
    late, early = chain(whole)["image"], chain({**whole, **fitted})["image"]
    return jax.tree.all(jax.tree.map(np.array_equal, late, early))
