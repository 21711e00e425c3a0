"""Read one recording: joints as arrays, images frame by frame.

The file layout is ALOHA's:

- /observations/qpos and /action, each (T, 14)
- /observations/qvel and /observations/effort, each (T, 14) and optional
- /observations/images/<camera>
- the optional attributes `fps` and `language_instruction`
"""

from collections.abc import Callable
import difflib
import functools
from pathlib import Path
from types import TracebackType

import h5py
from jaxtyping import Float64
import numpy as np

from realman import spec
from realman.arrays import Image
from realman.data.raw import hdf5
from realman.data.raw import options as _options
from realman.data.raw.camera import CameraStream
from realman.data.raw.options import RawOptions
from realman.data.raw.options import RawTraj
from realman.data.raw.options import Traj
from realman.errors import EpisodeError

QPOS = "observations/qpos"
ACTION = "action"
QVEL = "observations/qvel"
EFFORT = "observations/effort"
IMAGES = "observations/images"
COMPRESS_LEN = "compress_len"
FPS = "fps"

TIMESTAMPS = ("timestamps", "timestamp", "observations/timestamps", "observations/timestamp")
"""Datasets that may hold the time of each frame, in order of preference."""

TASK_NAMES = ("language_instruction", "instruction", "task")
"""Attributes or datasets that may hold the task text, in order of preference."""


def open_episode(path: Path, options: RawOptions | None = None) -> "Episode":
    """Open a recording.

    Close it, or use it as a context manager.

    Args:
        path: An HDF5 file.
        options: How to read it. None means the contract's own layout and units.

    Raises:
        EpisodeError: Not a readable recording. The message names every dataset that is missing or has a wrong shape.
    """
    return Episode(path, options or RawOptions())


class Episode:
    """An open recording in the contract's layout and units.

    That is: right arm first, joints in rad, grippers 0..1 (1 = open), images in RGB. Joint arrays are read on first
    use. Images are read in blocks of a few MiB.
    """

    def __init__(self, path: Path, options: RawOptions) -> None:
        self.path = path
        self.options = options
        self._file = hdf5.open_file(path)
        try:
            with hdf5.reading(path.name):
                self._check_form()
                self.num_frames: int = len(self._file[QPOS])
                self._has_velocity = _is_dataset(self._file, QVEL)
                self._has_effort = _is_dataset(self._file, EFFORT)
                self._recorded_as = _camera_names(self._file[IMAGES], options, path.name)
                self._streams = {camera: self._open_camera(name) for camera, name in self._recorded_as.items()}
                self._timestamps = next((name for name in TIMESTAMPS if _is_dataset(self._file, name)), None)
                self._fps = _stated_fps(self._file, options, path.name)
                self.task = _stated_task(self._file, options, path.name)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Episode":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, the contract's first and in its order."""
        return tuple(self._streams)

    @property
    def has_fps(self) -> bool:
        """Whether the recording or the options state the frame rate.

        If not, `fps` is the usual rate, which is only assumed.
        """
        return self._fps is not None

    @property
    def fps(self) -> int:
        """Frames per second."""
        return spec.DEFAULT_FPS if self._fps is None else self._fps

    @functools.cached_property
    def state(self) -> Traj:
        """Measured positions."""
        return _options.clip_grippers(self.unclipped_state)

    @functools.cached_property
    def action(self) -> Traj:
        """Commanded absolute positions."""
        return _options.clip_grippers(self.unclipped_action)

    @functools.cached_property
    def unclipped_state(self) -> Traj:
        """Measured positions, with grippers beyond 0..1 where their sensors read so."""
        return self._read(QPOS, _options.positions)

    @functools.cached_property
    def unclipped_action(self) -> Traj:
        """Commanded positions, with grippers beyond 0..1 where recorded so."""
        return self._read(ACTION, _options.positions)

    @functools.cached_property
    def velocity(self) -> Traj | None:
        """Measured velocities in rad/s, or None if not recorded."""
        return self._read(QVEL, _options.velocities) if self._has_velocity else None

    @functools.cached_property
    def effort(self) -> Traj | None:
        """Measured efforts in the recorder's unit, or None if not recorded."""
        return self._read(EFFORT, _options.efforts) if self._has_effort else None

    @functools.cached_property
    def timestamps(self) -> Float64[np.ndarray, " t"] | None:
        """Time of each frame, or None if not recorded.

        Unit and zero are the recorder's own.
        """
        if self._timestamps is None:
            return None
        place = f"{self.path.name}: '{self._timestamps}'"
        with hdf5.reading(place):
            recorded = np.asarray(self._file[self._timestamps][()], np.float64)
        if recorded.shape not in ((self.num_frames,), (self.num_frames, 1)):
            raise EpisodeError(f"{place} has shape {recorded.shape}, expected ({self.num_frames},)")
        return recorded.reshape(-1)

    def camera(self, name: str) -> CameraStream:
        """Return the frames of one camera.

        Raises:
            EpisodeError: There is no such camera.
        """
        if name not in self._streams:
            raise EpisodeError(f"{self.path.name}: has no camera '{name}', only {', '.join(self.cameras) or 'none'}")
        return self._streams[name]

    def camera_place(self, name: str) -> str:
        """Return the quoted name of a camera's dataset, for messages."""
        return f"'{IMAGES}/{self._recorded_as[name]}'"

    def image(self, camera: str, t: int) -> Image:
        """Return frame `t` of a camera as RGB, in a new array."""
        return self.camera(camera).image(t)

    def encoded_image(self, camera: str, t: int) -> bytes | None:
        """Return the JPEG as recorded, or None.

        None means that the frame must be encoded first, because the recording is raw or has swapped colors.
        """
        stream = self.camera(camera)
        return stream.jpeg_bytes(t) if stream.keeps_encoding else None

    def _read(self, name: str, convert: Callable[[RawTraj, RawOptions], Traj]) -> Traj:
        with hdf5.reading(f"{self.path.name}: '{name}'"):
            recorded = self._file[name][()]
        return convert(recorded, self.options)

    def _open_camera(self, camera: str) -> CameraStream:
        name = f"{IMAGES}/{camera}"
        lengths = self._file.get(COMPRESS_LEN)
        return CameraStream(
            self._file[name],
            place=f"{self.path.name}: '{name}'",
            color=self.options.color,
            lengths=lengths if isinstance(lengths, h5py.Dataset) and lengths.ndim == 2 else None,
        )

    def _check_form(self) -> None:
        """Raise one error that names every missing or misshapen dataset."""
        problems = [_missing(self._file, name) for name in (QPOS, ACTION) if not _is_dataset(self._file, name)]
        if not isinstance(self._file.get(IMAGES), h5py.Group):
            problems.append(_missing(self._file, IMAGES))
        vectors = {name: self._file[name] for name in (QPOS, ACTION, QVEL, EFFORT) if _is_dataset(self._file, name)}
        problems += [
            f"'{name}' has shape {data.shape} of {data.dtype}, expected (T, {spec.NUM_DIMS}) numbers"
            for name, data in vectors.items()
            if data.ndim != 2 or data.shape[1] != spec.NUM_DIMS or data.dtype.kind not in "fiu"
        ]
        # Lengths are compared only if everything to compare is there.
        if not problems:
            cameras = {f"{IMAGES}/{camera}": self._file[IMAGES][camera] for camera in self._file[IMAGES]}
            problems += _length_problems({**vectors, **cameras})
        if problems:
            raise EpisodeError(f"{self.path.name}: {'; '.join(problems)}")


def _is_dataset(group: h5py.Group, name: str) -> bool:
    return isinstance(group.get(name), h5py.Dataset)


def _missing(file: h5py.File, name: str) -> str:
    """Say that `name` is missing, and name the closest match."""
    names: list[str] = []
    file.visit(names.append)
    others = [n for n in names if not name.startswith(f"{n}/")]  # not the groups in which it should be
    near = difflib.get_close_matches(name, others, n=1)
    return f"'{name}' is missing" + (f" (found '{near[0]}')" if near else "")


def _length_problems(datasets: dict[str, h5py.Dataset]) -> list[str]:
    expected = len(datasets[QPOS])
    if expected == 0:
        return [f"'{QPOS}' has no frames"]
    return [
        f"'{name}' has {length} frames, '{QPOS}' has {expected}"
        for name, data in datasets.items()
        if (length := data.shape[0] if isinstance(data, h5py.Dataset) and data.shape else 0) != expected
    ]


def _camera_names(images: h5py.Group, options: RawOptions, place: str) -> dict[str, str]:
    """Map each camera's wanted name to its name in the file.

    The contract's cameras come first, in the contract's order.
    """
    renamed = dict(options.camera_map)
    if unknown := sorted(set(renamed) - set(images)):
        names = ", ".join(f"'{camera}'" for camera in unknown)
        raise EpisodeError(f"{place}: has no camera {names} to rename, only {', '.join(images) or 'none'}")
    pairs = [(renamed.get(camera, camera), camera) for camera in sorted(images)]
    recorded_as = dict(pairs)
    if len(recorded_as) < len(pairs):
        twice = next(name for name, camera in pairs if recorded_as[name] != camera)
        raise EpisodeError(
            f"{place}: two cameras would be called '{twice}'. Rename the other as well: --camera-map {twice}=..."
        )
    known = [camera for camera in spec.CAMERAS if camera in recorded_as]
    return {camera: recorded_as[camera] for camera in [*known, *(c for c in recorded_as if c not in known)]}


def _stated_fps(file: h5py.File, options: RawOptions, name: str) -> int | None:
    if FPS not in file.attrs:
        return options.fps
    recorded = float(np.asarray(file.attrs[FPS]).reshape(-1)[0])
    if recorded < 1 or recorded != round(recorded):
        raise EpisodeError(f"{name}: attribute '{FPS}' is {recorded:g}, expected a whole number of frames per second")
    if options.fps is not None and options.fps != recorded:
        raise EpisodeError(f"{name}: recorded at {recorded:g} fps, but --fps says {options.fps}. Leave --fps out")
    return int(recorded)


def _stated_task(file: h5py.File, options: RawOptions, name: str) -> str | None:
    recorded = next((text for key in TASK_NAMES if (text := _text(file, key, name))), None)
    if options.task is not None and recorded is not None and options.task.strip() != recorded:
        raise EpisodeError(f"{name}: its task is '{recorded}', but --task says '{options.task}'. Leave --task out")
    return recorded if options.task is None else options.task.strip()


def _text(file: h5py.File, key: str, name: str) -> str | None:
    """Return the text kept as an attribute or dataset, or None.

    One text per frame is accepted if all are the same.
    """
    if key in file.attrs:
        value = file.attrs[key]
    elif _is_dataset(file, key):
        value = file[key][()]
    else:
        return None
    texts = {v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(value).reshape(-1).tolist()}
    if len(texts) > 1:
        raise EpisodeError(f"{name}: '{key}' holds {len(texts)} different texts, expected one per episode")
    return next((t.strip() for t in texts if t.strip()), None)
