"""Keep images in the model's size on disk, inside their dataset's folder.

Each image is decoded and resized once, and only read from then on.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import logging
import shutil
import threading
from typing import TypeAlias

import av
import cv2
import numpy as np
import PIL

from openpi.shared.bounded_cache import BoundedCache
from openpi.training.lerobot import encoded_images
from openpi.training.lerobot.image_file import ImageFile
from openpi.training.lerobot.image_file import Layout
from openpi.training.lerobot.metadata import Episode
from openpi.training.lerobot.metadata import LeRobotMetadata
from openpi_client import image_tools

logger = logging.getLogger(__name__)

# Returns uint8 (h, w, 3) by camera for an episode index, a frame and cameras.
Decode: TypeAlias = Callable[[int, int, Sequence[str]], Mapping[str, np.ndarray]]

_MAX_OPEN_FILES = 256
# Share of the free space that is left to others.
_LEFT_FREE = 0.5
# Images between two checks of the free space.
_CHECK_EVERY = 64
# The same encoded image may decode differently with another release of these, or by another rule of ours.
_DECODERS = (cv2.__version__, av.__version__, PIL.__version__, "as stored")
# Do not change it: users' disks hold gigabytes under this name, and another name would make a second copy.
_SUFFIX = ".pictures"
_GIB = 2**30


class FittedImages:
    """Images of a dataset as `image_tools.resize_with_pad` makes them.

    Many threads and processes may use the same files at once.
    """

    def __init__(
        self, metadata: LeRobotMetadata, size: tuple[int, int], *, keep_free: int = 0, variant: str = ""
    ) -> None:
        """Choose the folder. Nothing is written yet.

        Args:
            metadata: The dataset.
            size: Height and width, px.
            keep_free: Bytes of the dataset's disk to leave free. At least half of the space that is free now stays free.
            variant: Suffix of the folder that separates images decoded in different ways.
        """
        self.size = size
        self._metadata = metadata
        self.folder = metadata.root / encoded_images.UNPACKED / f"{size[0]}x{size[1]}{variant}"
        self._floor = max(keep_free, int(_LEFT_FREE * shutil.disk_usage(metadata.root).free))
        self._is_writing = True
        self._num_written = 0
        # If two threads find an outdated file, the second must not empty the file that the first has begun to fill.
        self._opening = threading.Lock()
        self._files: BoundedCache[ImageFile | None] = BoundedCache(_MAX_OPEN_FILES)

    def read(self, episode: Episode, frame: int, keys: Sequence[str], decode: Decode) -> dict[str, np.ndarray]:
        """Return the images of one frame.

        Images that are not kept yet are decoded, and kept if there is space.

        Args:
            episode: The episode.
            frame: Frame inside it.
            keys: Cameras.
            decode: Decodes the images that are not kept yet.

        Returns:
            By camera: uint8 (height, width, 3), RGB.
        """
        files = {key: self._file(episode, key) for key in keys}
        kept = {key: self._load(file, frame) for key, file in files.items()}
        images = {key: image for key, image in kept.items() if image is not None}
        missing = [key for key in keys if key not in images]
        for key, image in (decode(episode.index, frame, missing) if missing else {}).items():
            images[key] = image_tools.resize_with_pad(image, *self.size)
            self._keep(files[key], frame, images[key])
        return images

    def _file(self, episode: Episode, key: str) -> ImageFile | None:
        def open_alone() -> ImageFile | None:
            with self._opening:
                return self._open(episode, key)

        return self._files.get((episode.index, key), open_alone)

    def _open(self, episode: Episode, key: str) -> ImageFile | None:
        """Open or create the file of an episode and camera.

        None if there is no source, or if the disk does not allow it.
        """
        meta = self._metadata
        source = meta.video_path(episode.index, key) if meta.is_video(key) else meta.data_path(episode.index)
        try:
            status = source.stat()
        except FileNotFoundError:
            return None  # Decoding reports it, with the remedy.
        # A file whose digest differs was made from another source or by another decoder, and is emptied.
        made_from = (key, episode.length, status.st_size, status.st_mtime_ns, _DECODERS)
        digest = hashlib.blake2b(repr(made_from).encode()).digest()
        layout = Layout(digest, episode.length, self.size)
        path = self.folder / key / f"{source.stem}{_SUFFIX}"
        try:
            return ImageFile.open(path, layout, make=self._is_writing)
        except OSError as e:
            self._stop(e)
            return None

    def _load(self, file: ImageFile | None, frame: int) -> np.ndarray | None:
        try:
            return None if file is None else file.read(frame)
        except OSError as e:
            self._stop(e)
            return None

    def _keep(self, file: ImageFile | None, frame: int, image: np.ndarray) -> None:
        if file is None or not self._is_writing:
            return
        try:
            if self._num_written % _CHECK_EVERY == 0 and shutil.disk_usage(self.folder).free < self._floor:
                self._stop(f"{self._floor / _GIB:.1f} GiB must stay free")
                return
            file.write(frame, image)
            self._num_written += 1
        except OSError as e:
            self._stop(e)

    def _stop(self, reason: object) -> None:
        if self._is_writing:
            self._is_writing = False
            logger.warning(
                "%s: no more images are kept (%s). Images that are not kept are decoded each time they are read",
                self.folder,
                reason,
            )
