"""Find the cameras of a recording.

A camera is a dataset of frames, or a group with one such dataset: `cam_high`, or `cam_high/color`.
"""

import shlex

import h5py

from realman import spec
from realman.data.raw import hdf5
from realman.data.raw.options import RawOptions
from realman.errors import EpisodeError

IMAGES = "observations/images"

_FRAME_NAMES = frozenset(("rgb", "color", "colors", "image", "images", "data", "frames", "jpeg", "jpg"))
"""What recorders call the color frames in a camera's group."""


def find_cameras(file: h5py.File, options: RawOptions, place: str) -> dict[str, str]:
    """Map each camera's wanted name to its path in the file.

    The contract's cameras come first, in the contract's order.

    Raises:
        EpisodeError: The camera map names a camera that is not there, or gives one name to two.
    """
    with hdf5.reading(f"{place}: '{IMAGES}'"):
        images = hdf5.find(file, IMAGES, place)
        recorded = sorted(images) if isinstance(images, h5py.Group) else []
    renamed = dict(options.camera_map)
    # A dataset that the map picks from a group stands for the group.
    picked = [path for path in sorted(renamed) if "/" in path and hdf5.find(file, f"{IMAGES}/{path}", place)]
    recorded = [*(name for name in recorded if not any(p.startswith(f"{name}/") for p in picked)), *picked]
    if unknown := sorted(set(renamed) - set(recorded)):
        names = ", ".join(f"'{camera}'" for camera in unknown)
        raise EpisodeError(f"{place}: has no camera {names} to rename, only {', '.join(recorded) or 'none'}")
    pairs = [(renamed.get(camera, camera), camera) for camera in recorded]
    recorded_as = dict(pairs)
    if len(recorded_as) < len(pairs):
        twice = next(name for name, camera in pairs if recorded_as[name] != camera)
        raise EpisodeError(
            f"{place}: two cameras would be called '{twice}'. Rename the other as well: --camera-map {twice}=..."
        )
    known = [camera for camera in spec.CAMERAS if camera in recorded_as]
    names_in_order = [*known, *(c for c in recorded_as if c not in known)]
    return {camera: f"{IMAGES}/{recorded_as[camera]}" for camera in names_in_order}


def frames_of(file: h5py.File, path: str, place: str, wanted: str | None = None) -> tuple[h5py.Dataset, str, list[str]]:
    """Return the dataset of a camera's frames.

    Its path follows, and the paths next to it in the camera's group.

    Args:
        file: The recording.
        path: The camera's dataset or group.
        place: The recording's name, for messages.
        wanted: The name that the camera should have. None means that of its path.

    Raises:
        EpisodeError: There is no such dataset, or several may be meant.
    """
    node = hdf5.find(file, path, place)
    beside: list[str] = []
    # A group stands for its frames, if it is clear which they are.
    if isinstance(node, h5py.Group):
        with hdf5.reading(f"{place}: '{path}'"):
            names = sorted(node)
        found = [name for name in names if _is_dataset(file, f"{path}/{name}", place)]
        known = [name for name in found if name.lower() in _FRAME_NAMES]
        chosen = known if len(known) == 1 else found
        if len(chosen) != 1:
            camera = path.removeprefix(f"{IMAGES}/")
            pair = shlex.quote(f"{camera}/{found[0]}={wanted or camera}") if found else ""
            remedy = f". Choose one with --camera-map {pair}" if found else ""
            raise EpisodeError(
                f"{place}: '{path}' is a group of {', '.join(names) or 'nothing'}, expected frames, or one dataset of "
                f"frames, such as color{remedy}"
            )
        beside = [f"{path}/{name}" for name in names if name != chosen[0]]
        path = f"{path}/{chosen[0]}"
        node = hdf5.find(file, path, place)
    if not isinstance(node, h5py.Dataset):
        raise EpisodeError(f"{place}: '{path}' is not a dataset, expected frames. Record the episode again")
    return node, path, beside


def _is_dataset(file: h5py.File, path: str, place: str) -> bool:
    """Return whether this is data of the file itself.

    A link to another file is not, and has no veto.
    """
    try:
        return isinstance(hdf5.find(file, path, place), h5py.Dataset)
    except EpisodeError:
        return False
