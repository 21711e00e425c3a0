"""Pictures in the model's size, kept on the disk beside their dataset: decoded and resized once, then only read."""

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

# Gives uint8 (h, w, 3) by camera for episode index, frame and cameras.
Decode: TypeAlias = Callable[[int, int, Sequence[str]], Mapping[str, np.ndarray]]

_MAX_OPEN_FILES = 256
# Part of the free space that is left to others.
_LEFT_FREE = 0.5
# Pictures between two looks at the free space.
_LOOK_EVERY = 64
# The same encoded picture may decode differently with another release of these.
_DECODERS = (cv2.__version__, av.__version__, PIL.__version__)
_GIB = 2**30


class FittedImages:
    """Pictures of a dataset as `image_tools.resize_with_pad` makes them; safe to use in many threads and processes."""

    def __init__(
        self, metadata: LeRobotMetadata, size: tuple[int, int], *, keep_free: int = 0, variant: str = ""
    ) -> None:
        """Remember where pictures are, or will be; nothing is written yet.

        Args:
            metadata: The dataset.
            size: Height and width, px.
            keep_free: Bytes of the dataset's disk to leave free; at least half of what is free now stays so.
            variant: Tells pictures apart that were decoded in different ways.
        """
        self.size = size
        self._metadata = metadata
        self.folder = metadata.root / encoded_images.UNPACKED / f"{size[0]}x{size[1]}{variant}"
        self._floor = max(keep_free, int(_LEFT_FREE * shutil.disk_usage(metadata.root).free))
        self._is_writing = True
        self._num_written = 0
        # Of two threads that find a file of other pictures, the second must not empty what the first has begun.
        self._opening = threading.Lock()
        self._files: BoundedCache[ImageFile | None] = BoundedCache(_MAX_OPEN_FILES)

    def read(self, episode: Episode, frame: int, keys: Sequence[str], decode: Decode) -> dict[str, np.ndarray]:
        """Return the pictures of one frame; those that are not kept yet are decoded, and kept if there is room.

        Args:
            episode: The episode.
            frame: Frame inside it.
            keys: Cameras.
            decode: Decodes what is missing.

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
        """Open or make the file of an episode and camera; None if there can be none."""
        meta = self._metadata
        source = meta.video_path(episode.index, key) if meta.is_video(key) else meta.data_path(episode.index)
        try:
            status = source.stat()
        except FileNotFoundError:
            return None  # Decoding will say so, with the remedy.
        made_from = (key, episode.length, status.st_size, status.st_mtime_ns, _DECODERS)
        digest = hashlib.blake2b(repr(made_from).encode()).digest()
        layout = Layout(digest, episode.length, self.size)
        path = self.folder / key / f"{source.stem}.pictures"
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
            if self._num_written % _LOOK_EVERY == 0 and shutil.disk_usage(self.folder).free < self._floor:
                self._stop(f"{self._floor / _GIB:.1f} GiB are to stay free")
                return
            file.write(frame, image)
            self._num_written += 1
        except OSError as e:
            self._stop(e)

    def _stop(self, reason: object) -> None:
        if self._is_writing:
            self._is_writing = False
            logger.warning(
                "%s: no more pictures are kept, those that are missing will be decoded each time (%s)",
                self.folder,
                reason,
            )
