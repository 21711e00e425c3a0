"""Read LeRobot v2.0 and v2.1 datasets as numpy frames.

Images are decoded only when and where a program asks for them.
"""

from collections.abc import Mapping, Sequence
import copy
import pathlib
from typing import Any, Self

import numpy as np

from openpi.shared import errors
from openpi.training.lerobot import columns as lerobot_columns
from openpi.training.lerobot import metadata as lerobot_metadata
from openpi.training.lerobot.fitted_images import FittedImages
from openpi.training.lerobot.images import ParquetImages
from openpi.training.lerobot.images import VideoImages


class LeRobotDataset:
    """A dataset on disk as a sequence of frames.

    Columns are held in memory, images are not. Many threads may read items at once. A frame is a flat dict
    with the dataset's dotted keys:

    * Vectors are float32 (d,).
    * Sequence keys are float32 (action_horizon, d): the frame's own row and the rows that follow. The episode's last
      row is repeated beyond its end. `<key>_is_pad`, bool (action_horizon,), is True for the repeats.
    * Images are uint8 (3, h, w), RGB.
    * Texts are str.
    * `timestamp` (s), `frame_index`, `episode_index`, `index` and `task_index` are numpy scalars. `task` is a str.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        root: pathlib.Path | str | None = None,
        action_sequence_keys: Sequence[str] = ("action",),
        action_horizon: int = 1,
        image_keys: Sequence[str] | None = None,
        column_keys: Sequence[str] | None = None,
        shrink_jpeg_to: tuple[int, int] | None = None,
    ) -> None:
        """Read the metadata and the number columns.

        Args:
            repo_id: Name of the dataset.
            root: Folder of the dataset itself. The default is $HF_LEROBOT_HOME (or ./data/lerobot) / repo_id.
            action_sequence_keys: Columns that are read as windows.
            action_horizon: Length of the windows, frames.
            image_keys: Cameras to decode. None means all.
            column_keys: Number columns to hold in addition to those that number the frames. None means all.
            shrink_jpeg_to: Height and width, px, that images will be fitted into. JPEGs may then be decoded smaller,
                which is faster and does not give quite the same image.

        Raises:
            MissingFileError: The dataset or one of its files is missing.
            DataError: It cannot be read, or lacks a camera or column that was asked for.
        """
        self.repo_id = repo_id
        self.meta = lerobot_metadata.load_metadata(repo_id, root)
        self.image_keys = tuple(self.meta.camera_keys if image_keys is None else image_keys)
        self._sequence_keys = tuple(action_sequence_keys)
        self._check_keys()
        wanted = (
            self.meta.column_keys
            if column_keys is None
            else {*column_keys, *lerobot_metadata.INDEX_KEYS, *action_sequence_keys}
        )
        keys = [key for key in self.meta.column_keys if key in wanted]
        self._columns = lerobot_columns.read_columns(self.meta, keys)
        self._window = np.arange(action_horizon)
        # First frame of each episode, to find the episode of a frame.
        self._starts = np.array([episode.first_frame for episode in self.meta.episodes])
        video_keys = [key for key in self.image_keys if self.meta.is_video(key)]
        encoded_keys = [key for key in self.image_keys if not self.meta.is_video(key)]
        self._sources = [
            (source, keys)
            for source, keys in (
                (ParquetImages(self.meta, shrink_jpeg_to), encoded_keys),
                (VideoImages(self.meta), video_keys),
            )
            if keys
        ]
        self._fitted: FittedImages | None = None

    def with_fitted(self, images: FittedImages) -> Self:
        """Return a copy of the dataset with images of another size.

        Its images (3, h, w) have the size of `images`, which keeps them on disk.
        """
        fitted = copy.copy(self)
        fitted._fitted = images
        return fitted

    def _check_keys(self) -> None:
        problems = [f"camera '{key}'" for key in self.image_keys if key not in self.meta.camera_keys]
        problems += [f"column '{key}'" for key in self._sequence_keys if key not in self.meta.column_keys]
        if problems:
            raise errors.DataError(
                f"{self.meta.root}: no {', no '.join(problems)}, found cameras {list(self.meta.camera_keys)}, "
                f"columns {list(self.meta.column_keys)}"
            )

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """The number columns held in memory, by key. Do not change them."""
        return self._columns

    def __len__(self) -> int:
        return self.meta.total_frames

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read frame `index`, counted over all episodes.

        Raises:
            IndexError: There is no such frame.
            DataError: An image cannot be decoded. The message names the episode, the frame and the camera.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.repo_id}: frame {index} is outside 0..{len(self) - 1}")
        position = int(np.searchsorted(self._starts, index, side="right")) - 1
        episode = self.meta.episodes[position]
        frame = int(index) - episode.first_frame

        item: dict[str, Any] = {key: column[index] for key, column in self._columns.items()}
        # Windows stay inside the episode: its last row stands for all later ones.
        window = frame + self._window
        for key in self._sequence_keys:
            item[key] = self._columns[key][episode.first_frame + np.minimum(window, episode.length - 1)]
            item[f"{key}_is_pad"] = window >= episode.length
        for source, keys in self._sources:
            if self._fitted is None:
                images = source.read(episode.index, frame, keys)
            else:
                images = self._fitted.read(episode, frame, keys, source.read)
            item.update({key: image.transpose(2, 0, 1) for key, image in images.items()})
        item["task"] = self._task(item)
        return item

    def _task(self, item: dict[str, Any]) -> str:
        task_index = int(item["task_index"])
        if task_index not in self.meta.tasks:
            raise errors.DataError(
                f"{self.meta.root}: frame {int(item['index'])} has task_index {task_index}, which meta/tasks.jsonl lacks. "
                "Add a line with its text there"
            )
        return self.meta.tasks[task_index]
