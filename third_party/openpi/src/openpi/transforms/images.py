"""Transforms of camera images."""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools

import numpy as np

from openpi.shared import errors
from openpi.transforms.base import DataDict
from openpi.transforms.base import DataTransformFn
from openpi_client import image_tools


@dataclasses.dataclass(frozen=True)
class ResizeImages(DataTransformFn):
    """Resize every image of `data["image"]` and pad it with black.

    Images are uint8 [h, w, c] and keep their proportions.
    """

    height: int
    width: int
    # Threads that share the images of one sample. More than one helps a waiting robot. A data loader has enough samples to share.
    num_threads: int = 1

    def __call__(self, data: DataDict) -> DataDict:
        """Return the sample with resized images."""
        images = data["image"]
        is_shared = self.num_threads > 1 and sum(image.shape[:2] != self._size for image in images.values()) > 1
        resize = self._executor.map if is_shared else map
        return {**data, "image": dict(zip(images, resize(self._resize, images.values()), strict=True))}

    @property
    def _size(self) -> tuple[int, int]:
        return (self.height, self.width)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        return image_tools.resize_with_pad(image, self.height, self.width)

    @functools.cached_property
    def _executor(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self.num_threads, thread_name_prefix="resize")


@dataclasses.dataclass(frozen=True)
class DropImages(DataTransformFn):
    """Drop the images of camera slots that this robot never fills.

    Their masks stay. The model then computes no tokens for them, which nothing would read. The slots are fixed and not found
    sample by sample, because another set of images is another program to compile.
    """

    slots: Sequence[str]

    def __call__(self, data: DataDict) -> DataDict:
        """Return the sample without the slots' images.

        Raises:
            DataError: The mask says that a slot is present.
        """
        if present := [slot for slot in self.slots if np.any(data["image_mask"][slot])]:
            raise errors.DataError(f"sample: found images in the camera slots {present}, expected them to be empty")
        return data | {"image": {slot: image for slot, image in data["image"].items() if slot not in self.slots}}
