"""Transforms of camera images."""

import dataclasses

from openpi._transforms.base import DataDict
from openpi._transforms.base import DataTransformFn
from openpi_client import image_tools


@dataclasses.dataclass(frozen=True)
class ResizeImages(DataTransformFn):
    """Resize every image of `data["image"]` (uint8 [h, w, c]) with black padding, keeping its proportions."""

    height: int
    width: int

    def __call__(self, data: DataDict) -> DataDict:
        """Return the sample with resized images."""
        resized = {
            name: image_tools.resize_with_pad(image, self.height, self.width) for name, image in data["image"].items()
        }
        return {**data, "image": resized}
