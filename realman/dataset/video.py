"""Videos of one camera of one episode, encoded for random access."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import av
import numpy as np

from realman.arrays import Image
from realman.dataset import files
from realman.errors import DatasetError

CodecName = Literal["av1", "h264"]

_KEYFRAME_EVERY = 2
"""A decoder then never needs more than two frames to show one; LeRobot's own choice."""

_PIXEL_FORMAT = "yuv420p"


@dataclasses.dataclass(frozen=True)
class Codec:
    """An encoder and its settings."""

    encoder: str
    options: tuple[tuple[str, str], ...]


# SVT-AV1 reports every encoder it opens; 1 leaves only errors. Read by the library when it is first used.
os.environ.setdefault("SVT_LOG", "1")

# AV1 quality 30 is LeRobot's; preset 9 encodes twice as fast as 8 at the same size, and the encoder's authors warn of artifacts
# from 10 on. x264's quality scale differs: 23 is its own default. With a key frame every second frame there is nothing to look
# ahead for, and x264's choice of B-frames depends on uninitialised memory: the same frames gave up to three different files.
_X264_NO_LOOKAHEAD = (("bf", "0"), ("rc-lookahead", "0"), ("mbtree", "0"), ("sc_threshold", "0"))
CODECS: dict[CodecName, Codec] = {
    "av1": Codec("libsvtav1", (("preset", "9"), ("crf", "30"), ("svtav1-params", "lp=1"))),
    "h264": Codec("libx264", (("preset", "veryfast"), ("crf", "23"), *_X264_NO_LOOKAHEAD)),
}


def video_info(codec: CodecName, fps: int) -> dict[str, Any]:
    """What info.json says of every video besides its size."""
    return {
        "video.codec": codec,
        "video.pix_fmt": _PIXEL_FORMAT,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def check_size(height: int, width: int) -> None:
    """Refuse a frame size that the pixel format, with one colour for 2x2 pixels, cannot hold.

    Raises:
        DatasetError: Height or width is odd.
    """
    if height % 2 or width % 2:
        raise DatasetError(f"video mode needs an even frame size, found {height}x{width} px; use --mode image")


class VideoWriter:
    """Encodes frames one by one; the file appears under its name only when it is complete."""

    def __init__(self, path: Path, *, fps: int, height: int, width: int, codec: CodecName) -> None:
        """Open a file beside `path`, which takes its place at the end of the `with` block; see `check_size`."""
        check_size(height, width)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w", format="mp4")
        chosen = CODECS[codec]
        options = {"g": str(_KEYFRAME_EVERY), **dict(chosen.options)}
        stream = cast(av.VideoStream, self._container.add_stream(chosen.encoder, fps, options=options))
        stream.height, stream.width, stream.pix_fmt = height, width, _PIXEL_FORMAT
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
            # What made the block end is the error to report, not that the file cannot be ended (on a full disk it cannot).
            with contextlib.suppress(av.FFmpegError):
                self._container.close()

    def write(self, image: Image) -> None:
        """Append one RGB frame of the size given at the start."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))


def read_frames(path: Path, wanted: set[int]) -> Iterator[Image]:
    """Decode a video once and yield the wanted frames as RGB, in order.

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
        raise DatasetError(f"{path}: cannot be decoded as video ({e}); copy the dataset again") from e
    if found < len(wanted):
        raise DatasetError(f"{path}: ends before frame {max(wanted)}; copy the dataset again")
