"""Array types of the package's interfaces.

In the shapes, t is the number of frames, h and w are an image's height and width, and 14 stands for the numbers of both
arms.
"""

from jaxtyping import Float
from jaxtyping import UInt8
import numpy as np

from realman import spec
from realman.errors import RejectedError

JointVec = Float[np.ndarray, " 14"]
"""One state or action of both arms: joints in rad, grippers 0..1 (1 = open), right arm first."""

JointTraj = Float[np.ndarray, "t 14"]
"""A trajectory of both arms."""

Image = UInt8[np.ndarray, "h w 3"]
"""One RGB camera frame."""

Bytes = UInt8[np.ndarray, " _"]
"""Raw bytes, often a view of a larger buffer."""

Pixels = UInt8[np.ndarray, "_ _ 3"]
"""An image whose size is independent of other images in the same call."""

StoredFrame = Bytes | Pixels
"""A frame as it was recorded: the bytes of a JPEG, or pixels in the recorded channel order."""


def check_finite(values: JointVec, what: str) -> None:
    """Refuse NaN and infinity.

    An arm controller would take either for a huge angle.

    Raises:
        RejectedError: A number is not finite. The message names every one.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise RejectedError(f"{what}: not finite at {', '.join(f'{spec.DIM_NAMES[i]} [{i}]' for i in bad)}")
