"""Resizing in front of the transforms instead of among them, where the result is the same: what comes out is then worth keeping."""

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
    """Return the dataset with its pictures in the model's size, kept on the disk once they have been decoded.

    One frame is tried both ways. Where the config's transforms look at the size of a picture (a crop), or have none that
    resizes, the dataset comes back as it is.

    Args:
        dataset: Gives pictures in their own size.
        data_config: Has the transforms.
        leave_room: For what kept pictures must leave room.

    Raises:
        DataError: The frame's pictures cannot be decoded.
    """
    chain = _until_resized(data_config)
    if not data_config.keep_images or chain is None or not dataset.image_keys:
        return dataset
    size = (chain[-1].height, chain[-1].width)
    if not _is_the_same(dataset, _transforms.compose(chain), size):
        logger.info("%s: the config's transforms look at the size of images; none are kept", dataset.meta.root)
        return dataset
    variant = "_reduced" if data_config.reduced_jpeg else ""
    keep_free = leave_room.on_disk_of(dataset.meta.root) if leave_room else 0
    images = FittedImages(dataset.meta, size, keep_free=keep_free, variant=variant)
    _tell(images.folder, len(dataset) * len(dataset.image_keys) * _RGB_BYTES * size[0] * size[1] / _GIB)
    return dataset.with_fitted(images)


@functools.cache
def _tell(folder: pathlib.Path, gib: float) -> None:
    """Say it once: several parts of a mixture, and validation, use the same folder."""
    logger.info(
        "%s: pictures are kept as the model sees them, up to %.1f GiB; --data.no-keep-images decodes them each time",
        *(folder, gib),
    )


def _until_resized(data_config: DataConfig) -> Sequence[Any] | None:
    """The transforms up to the one that resizes; None if there is none."""
    model = list(data_config.model_transforms.inputs)
    resizes = [i for i, transform in enumerate(model) if isinstance(transform, _transforms.ResizeImages)]
    if not resizes:
        return None
    groups = (data_config.repack_transforms, data_config.data_transforms)
    return [transform for group in groups for transform in group.inputs] + model[: resizes[0] + 1]


def _is_the_same(dataset: LeRobotDataset, chain: _transforms.DataTransformFn, size: tuple[int, int]) -> bool:
    whole = {"prompt": "", **dataset[0]}
    fitted = {
        key: image_tools.resize_with_pad(whole[key].transpose(1, 2, 0), *size).transpose(2, 0, 1)
        for key in dataset.image_keys
    }
    late, early = chain(whole)["image"], chain({**whole, **fitted})["image"]
    return jax.tree.all(jax.tree.map(np.array_equal, late, early))
