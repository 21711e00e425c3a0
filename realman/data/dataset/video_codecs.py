"""Video codecs, their settings, and their entries in info.json.

This module loads no codec library, because most datasets contain no video.
"""

import dataclasses
import os
from typing import Any, Literal

from realman.errors import DatasetError

CodecName = Literal["av1", "h264"]

KEYFRAME_EVERY = 2
"""A decoder then never needs more than two frames to show one. LeRobot makes the same choice."""

PIXEL_FORMAT = "yuv420p"


@dataclasses.dataclass(frozen=True)
class Codec:
    """An encoder and its settings."""

    encoder: str
    options: tuple[tuple[str, str], ...]


# SVT-AV1 reports every encoder it opens, and 1 leaves only errors. The library reads this when it is first used.
os.environ.setdefault("SVT_LOG", "1")

# AV1 quality 30 is LeRobot's. Preset 9 encodes twice as fast as 8 at the same size, and the encoder's authors warn of
# artifacts from 10 on. x264 has another quality scale, and 23 is its default. With a key frame every second frame there
# is nothing to look ahead for. x264's choice of B-frames depends on uninitialized memory: the same frames gave up to
# three different files.
_X264_NO_LOOKAHEAD = (("bf", "0"), ("rc-lookahead", "0"), ("mbtree", "0"), ("sc_threshold", "0"))
CODECS: dict[CodecName, Codec] = {
    "av1": Codec("libsvtav1", (("preset", "9"), ("crf", "30"), ("svtav1-params", "lp=1"))),
    "h264": Codec("libx264", (("preset", "veryfast"), ("crf", "23"), *_X264_NO_LOOKAHEAD)),
}


def video_info(codec: CodecName, fps: int) -> dict[str, Any]:
    """Return the entries of info.json for every video, except its size."""
    return {
        "video.codec": codec,
        "video.pix_fmt": PIXEL_FORMAT,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def check_size(height: int, width: int) -> None:
    """Refuse a frame size that the pixel format cannot hold.

    The format has one color value per 2x2 pixels.

    Raises:
        DatasetError: Height or width is odd.
    """
    if height % 2 or width % 2:
        raise DatasetError(f"video mode needs an even frame size, found {height}x{width} px. Use --mode image")
