"""The video codecs, their settings, and what info.json says of them; loads no codec library, for most datasets hold no video."""

import dataclasses
import os
from typing import Any, Literal

from realman.errors import DatasetError

CodecName = Literal["av1", "h264"]

KEYFRAME_EVERY = 2
"""A decoder then never needs more than two frames to show one; LeRobot's own choice."""

PIXEL_FORMAT = "yuv420p"


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
        "video.pix_fmt": PIXEL_FORMAT,
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
