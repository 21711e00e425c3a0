"""Write and read videos that are encoded for random access.

A video shows one camera of one episode.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np

from realman.arrays import Image
from realman.data.dataset import files
from realman.data.dataset.video_codecs import CODECS
from realman.data.dataset.video_codecs import KEYFRAME_EVERY
from realman.data.dataset.video_codecs import PIXEL_FORMAT
from realman.data.dataset.video_codecs import CodecName
from realman.data.dataset.video_codecs import check_size
from realman.errors import DatasetError


class VideoWriter:
    """Encode frames one by one.

    The file gets its final name only once it is complete.
    """

    def __init__(self, path: Path, *, fps: int, height: int, width: int, codec: CodecName) -> None:
        """Open a temporary file next to `path`.

        It is renamed to `path` at the end of the `with` block. See `check_size` for allowed sizes.
        """
        check_size(height, width)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w", format="mp4")
        chosen = CODECS[codec]
        options = {"g": str(KEYFRAME_EVERY), **dict(chosen.options)}
        stream = cast(av.VideoStream, self._container.add_stream(chosen.encoder, fps, options=options))
        stream.height, stream.width, stream.pix_fmt = height, width, PIXEL_FORMAT
        # Episodes are encoded in parallel already, and x264's bytes depend on its number of threads.
        stream.thread_count = 1
        self._stream = stream

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            files.finish(self._part, self._path)
        else:
            # Report the error that ended the block. Closing the file may fail as well, for example on a full disk.
            with contextlib.suppress(av.FFmpegError):
                self._container.close()

    def write(self, image: Image) -> None:
        """Append one RGB frame of the given height and width."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))


def read_frames(path: Path, wanted: set[int]) -> Iterator[Image]:
    """Decode a video once and yield the wanted RGB frames in order.

    Raises:
        DatasetError: The file cannot be decoded, or ends before the last wanted frame.
    """
    found = 0
    try:
        with av.open(str(path)) as container:
            for t, frame in enumerate(container.decode(video=0)):
                if t in wanted:
                    found += 1
                    yield np.asarray(frame.to_ndarray(format="rgb24"))
    except av.FFmpegError as e:
        raise DatasetError(f"{path}: cannot be decoded as video ({e}). Copy the dataset again") from e
    if found < len(wanted):
        raise DatasetError(f"{path}: ends before frame {max(wanted)}. Copy the dataset again")
