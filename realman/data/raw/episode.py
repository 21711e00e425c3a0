"""Read one recording: joints as arrays, images frame by frame.

The file layout is ALOHA's:

- /observations/qpos and /action, each (T, 14)
- /observations/qvel and /observations/effort, each (T, 14) and optional
- /observations/images/<camera>, or a group of that name with one dataset of frames
- the optional attributes `fps` and `language_instruction`

What else a file holds has no veto: it is listed in `Episode.left_out`, with the reason.
"""

from collections.abc import Callable, Sequence
import difflib
import functools
from pathlib import Path
from types import TracebackType

import h5py
from jaxtyping import Float64
import numpy as np

from realman import spec
from realman.arrays import Image
from realman.data.raw import cameras as _cameras
from realman.data.raw import hdf5
from realman.data.raw import options as _options
from realman.data.raw import statements
from realman.data.raw.camera import CameraStream
from realman.data.raw.cameras import IMAGES
from realman.data.raw.options import RawOptions
from realman.data.raw.options import RawTraj
from realman.data.raw.options import Traj
from realman.errors import EpisodeError

QPOS = "observations/qpos"
ACTION = "action"
QVEL = "observations/qvel"
EFFORT = "observations/effort"
COMPRESS_LEN = "compress_len"

MAX_FRAMES = 2**23
"""Two days at 50 Hz. A length without data can be declared as large as one likes."""

_MAX_CAMERA_LENGTHS = 64
"""Most rows of the table of JPEG lengths."""


def open_episode(
    path: Path, options: RawOptions | None = None, *, cameras: Sequence[str] | None = None, name: str | None = None
) -> "Episode":
    """Open a recording.

    Close it, or use it as a context manager.

    Args:
        path: An HDF5 file.
        options: How to read it. None means the contract's own layout and units.
        cameras: Cameras that must be sound if they are recorded. None means the contract's.
        name: What to call it in messages. None means its file name.

    Raises:
        EpisodeError: Not a readable recording. The message names every dataset that is missing or has a wrong shape.
    """
    asked = spec.CAMERAS if cameras is None else cameras
    return Episode(path, options or RawOptions(), asked, path.name if name is None else name)


class Episode:
    """An open recording in the contract's layout and units.

    That is: right arm first, joints in rad, grippers 0..1 (1 = open), images in RGB. Joint arrays are read on first
    use. Images are read in blocks of a few MiB.
    """

    def __init__(self, path: Path, options: RawOptions, cameras: Sequence[str], name: str) -> None:
        self.path = path
        self.options = options
        self.name = name
        """What it is called in messages."""
        self.left_out: dict[str, str] = {}
        """What the file holds but is not read, with the reason."""
        self.broken_cameras: dict[str, str] = {}
        """Recorded cameras that cannot be read, with the reason."""
        self._file = hdf5.open_file(path, name)
        try:
            vectors = self._vectors()
            self.num_frames: int = len(vectors[QPOS])
            self._vector_names = frozenset(vectors)
            self._open_cameras(cameras)
            # What the recording says about itself.
            self._fps, problem, fps_note = statements.read_fps(self._file, options, name)
            if problem:
                raise EpisodeError(f"{name}: {problem}")
            task, task_note = statements.read_task(self._file, options, name)
            self.task, self.task_problem = task
            self.notes = tuple(note for note in (fps_note, task_note) if note)
            """What the recording states and an option replaces."""
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
        return self._read(ACTION, _options.positions, self.options.for_actions())

    @functools.cached_property
    def velocity(self) -> Traj | None:
        """Measured velocities in rad/s, or None if unusable."""
        return self._read(QVEL, _options.velocities) if QVEL in self._vector_names else None

    @functools.cached_property
    def effort(self) -> Traj | None:
        """Measured efforts in the recorder's unit, or None if unusable."""
        return self._read(EFFORT, _options.efforts) if EFFORT in self._vector_names else None

    @property
    def timestamps(self) -> Float64[np.ndarray, " t"] | None:
        """Time of each frame, or None if unusable.

        Unit and zero are the recorder's own.
        """
        return self._clock[0]

    @property
    def timestamps_problem(self) -> str | None:
        """Why recorded times cannot be used, or None."""
        return self._clock[1]

    @functools.cached_property
    def _clock(self) -> tuple[np.ndarray | None, str | None]:
        try:
            return statements.read_timestamps(self._file, self.num_frames, self.name)
        except EpisodeError as e:
            return None, str(e).removeprefix(f"{self.name}: ")

    def camera(self, name: str) -> CameraStream:
        """Return the frames of one camera.

        Raises:
            EpisodeError: There is no such camera.
        """
        if name in self.broken_cameras:
            raise EpisodeError(self.broken_cameras[name])
        if name not in self._streams:
            raise EpisodeError(f"{self.name}: has no camera '{name}', only {', '.join(self.cameras) or 'none'}")
        return self._streams[name]

    def camera_place(self, name: str) -> str:
        """Return the quoted name of a camera's dataset, for messages."""
        return f"'{self._recorded_as[name]}'"

    def image(self, camera: str, t: int) -> Image:
        """Return frame `t` of a camera as RGB, in a new array."""
        return self.camera(camera).image(t)

    def encoded_image(self, camera: str, t: int) -> bytes | None:
        """Return the JPEG as recorded, or None.

        None means that the frame must be encoded first, because the recording is raw or has swapped colors.
        """
        stream = self.camera(camera)
        return stream.jpeg_bytes(t) if stream.keeps_encoding else None

    def _read(
        self, name: str, convert: Callable[[RawTraj, RawOptions], Traj], options: RawOptions | None = None
    ) -> Traj:
        dataset = hdf5.find_dataset(self._file, name, self.name)
        assert dataset is not None
        with hdf5.reading(f"{self.name}: '{name}'"):
            recorded = dataset[()]
        return convert(recorded, options or self.options)

    def _vectors(self) -> dict[str, h5py.Dataset]:
        """Return the datasets of 14 numbers per frame.

        Raises:
            EpisodeError: State or action is missing or misshapen. The message names everything that is.
        """
        problems = []
        found: dict[str, h5py.Dataset] = {}
        for name in (QPOS, ACTION, QVEL, EFFORT):
            node, problem = self._find_vector(name)
            if node is not None:
                found[name] = node
            elif name in (QPOS, ACTION):
                problems.append(problem or _missing(self._file, name, self.name))
            elif problem:
                self.left_out[name] = problem
        images = hdf5.find(self._file, IMAGES, self.name)
        if images is None:
            problems.append(_missing(self._file, IMAGES, self.name))
        elif not isinstance(images, h5py.Group):
            problems.append(f"'{IMAGES}' is not a group, expected one with a dataset per camera")
        if problems:
            raise EpisodeError(f"{self.name}: {'; '.join(problems)}")
        return self._of_equal_length(found)

    def _find_vector(self, name: str) -> tuple[h5py.Dataset | None, str | None]:
        """Return a dataset of 14 numbers per frame, or its problem.

        Both are None if nothing is there.
        """
        try:
            node = hdf5.find(self._file, name, self.name)
        except EpisodeError as e:
            return None, str(e).removeprefix(f"{self.name}: ")
        problem = None if node is None else _vector_problem(node, name)
        return (node, None) if isinstance(node, h5py.Dataset) and problem is None else (None, problem)

    def _of_equal_length(self, found: dict[str, h5py.Dataset]) -> dict[str, h5py.Dataset]:
        """Return the vectors that are as long as the state."""
        num_frames = len(found[QPOS])
        if not 1 <= num_frames <= MAX_FRAMES:
            count = (
                "has no frames" if not num_frames else f"declares {num_frames} frames, expected at most {MAX_FRAMES}"
            )
            raise EpisodeError(f"{self.name}: '{QPOS}' {count}. Record the episode again")
        kept = {}
        for name, dataset in found.items():
            try:
                if len(dataset) != num_frames:
                    raise EpisodeError(f"'{name}' has {len(dataset)} frames, '{QPOS}' has {num_frames}")
                hdf5.check_data(dataset, f"'{name}'")
                kept[name] = dataset
            except EpisodeError as e:
                if name in (QPOS, ACTION):
                    raise EpisodeError(f"{self.name}: {e}") from e
                self.left_out[name] = str(e)
        return kept

    def _open_cameras(self, asked: Sequence[str]) -> None:
        """Open all cameras that can be opened.

        Raises:
            EpisodeError: Cameras that are asked for cannot. The message names all of them.
        """
        self._recorded_as = _cameras.find_cameras(self._file, self.options, self.name)
        self._streams: dict[str, CameraStream] = {}
        lengths = self._jpeg_lengths()
        for camera in list(self._recorded_as):
            try:
                self._streams[camera] = self._open_camera(camera, lengths)
            except EpisodeError as e:
                self.broken_cameras[camera] = str(e)
        prefix = f"{self.name}: "
        if problems := [text.removeprefix(prefix) for name, text in self.broken_cameras.items() if name in asked]:
            raise EpisodeError(prefix + "; ".join(problems))
        self.left_out |= {
            self._recorded_as[camera]: text.removeprefix(prefix) for camera, text in self.broken_cameras.items()
        }

    def _open_camera(self, camera: str, lengths: np.ndarray | None) -> CameraStream:
        dataset, path, beside = _cameras.frames_of(self._file, self._recorded_as[camera], self.name, camera)
        self._recorded_as[camera] = path
        self.left_out |= {other: f"'{other}' is next to the frames of a camera" for other in beside}
        place = f"{self.name}: '{path}'"
        length = dataset.shape[0] if dataset.shape else 0
        if length != self.num_frames:
            raise EpisodeError(f"{place} has {length} frames, '{QPOS}' has {self.num_frames}")
        hdf5.check_data(dataset, place)
        return CameraStream(dataset, place=place, color=self.options.color, lengths=lengths)

    def _jpeg_lengths(self) -> np.ndarray | None:
        """Return the table (cameras, T) of JPEG lengths, or None."""
        try:
            table = hdf5.find_dataset(self._file, COMPRESS_LEN, self.name)
            if table is None or table.dtype.kind not in "fiu" or table.ndim != 2:
                return None
            if table.shape[0] > _MAX_CAMERA_LENGTHS or table.shape[1] != self.num_frames:
                return None
            hdf5.check_data(table, f"{self.name}: '{COMPRESS_LEN}'")
            with hdf5.reading(f"{self.name}: '{COMPRESS_LEN}'"):
                return np.asarray(table[()], np.float64)
        except EpisodeError as e:
            self.left_out[COMPRESS_LEN] = str(e)
            return None


def _vector_problem(node: hdf5.Node, name: str) -> str | None:
    """Say why something is not 14 numbers per frame."""
    expected = f"expected (T, {spec.NUM_DIMS}) numbers"
    if isinstance(node, h5py.Group):
        return f"'{name}' is a group of {', '.join(node) or 'nothing'}, {expected} in one dataset, the right arm first"
    if not isinstance(node, h5py.Dataset):
        return f"'{name}' is a type, {expected}"
    if node.ndim != 2 or node.shape[1] != spec.NUM_DIMS or node.dtype.kind not in "fiu":
        return f"'{name}' has shape {node.shape} of {node.dtype}, {expected}"
    return None


def _missing(file: h5py.File, name: str, place: str) -> str:
    """Say that `name` is missing, and name the closest match."""
    names: list[str] = []
    with hdf5.reading(place):
        file.visit(names.append)
    others = [n for n in names if not name.startswith(f"{n}/")]  # not the groups in which it should be
    near = difflib.get_close_matches(name, others, n=1)
    return f"'{name}' is missing" + (f" (found '{near[0]}')" if near else "")
