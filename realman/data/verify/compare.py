"""Compare the items that the official library loads with the recordings."""

from collections.abc import Callable, Container, Iterator
import contextlib
import dataclasses
import json
import math
from pathlib import Path
import subprocess
import tempfile
from typing import IO, Any

from jaxtyping import Shaped
import numpy as np

from realman import spec
from realman.data.dataset import existing
from realman.data.dataset import layout
from realman.data.raw import Episode
from realman.data.raw import open_episode
from realman.data.raw.options import RawOptions
from realman.data.verify import environment
from realman.data.verify import stream_items
from realman.errors import DatasetError

MIN_PSNR_DB = 20.0
"""Images stored with loss must be at least this close. Images of different scenes have 10 to 15 dB."""


@dataclasses.dataclass
class Agreement:
    """How well one feature agrees over all items."""

    is_lossless: bool = True
    """Whether every number must be the same."""
    num_items: int = 0
    num_equal: int = 0
    largest: float = 0.0
    """Largest difference, in the feature's unit, or in levels of 255 for images."""
    worst: str = ""
    """Place of the first item with the largest difference."""
    square_error: float = 0.0
    """Sum of the mean square errors of all items, for images."""

    @property
    def psnr_db(self) -> float:
        """Peak signal-to-noise ratio of images over all items."""
        return 10 * math.log10(255**2 * self.num_items / self.square_error) if self.square_error else math.inf

    @property
    def is_good(self) -> bool:
        """Whether the feature agrees as well as its storage allows."""
        if math.isinf(self.largest):
            return False
        return self.num_equal == self.num_items if self.is_lossless else self.psnr_db >= MIN_PSNR_DB

    def add(self, found: Shaped[np.ndarray, "..."], expected: Shaped[np.ndarray, "..."], place: str) -> None:
        """Compare one item."""
        if found.shape != expected.shape or found.dtype != expected.dtype:
            self.add_fault(place, f"{found.dtype} {found.shape}, expected {expected.dtype} {expected.shape}")
            return
        self.num_items += 1
        if np.array_equal(found, expected):
            self.num_equal += 1
            return
        error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        self.square_error += float((error**2).mean())
        self._note(float(error.max()), place)

    def add_fault(self, place: str, text: str) -> None:
        """Count an item that cannot be compared."""
        self.num_items += 1
        self._note(math.inf, f"{place} ({text})")

    def add_text(self, found: str | None, expected: str | None, place: str) -> None:
        """Compare one text."""
        if found == expected:
            self.num_items += 1
            self.num_equal += 1
        else:
            self.add_fault(place, f"'{found}', expected '{expected}'")

    def _note(self, error: float, place: str) -> None:
        if error > self.largest:
            self.largest, self.worst = error, place


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Result of a comparison."""

    lerobot_version: str
    num_items: int
    features: dict[str, Agreement]

    @property
    def is_good(self) -> bool:
        """Whether all features agree."""
        return all(agreement.is_good for agreement in self.features.values())


@dataclasses.dataclass(frozen=True)
class ConvertedDataset:
    """A dataset and the recordings from which it was made."""

    root: Path
    raw_dir: Path

    def episodes(self) -> Iterator[tuple[Path, RawOptions]]:
        """Yield the recording of each episode and how it was read.

        Raises:
            DatasetError: The converter did not make the dataset from these recordings.
        """
        options = self._options()
        if existing.read(self.root).arm_order() == "left_right":
            raise DatasetError(
                f"{self.root / layout.INFO}: the names put the left arm first, but 'make convert' wrote the right arm "
                "first. Correct the names in the file, or convert the recordings again"
            )
        sources = layout.read_json_lines(self.root / layout.SOURCES)
        tasks = [line["tasks"][0] for line in layout.read_json_lines(self.root / layout.EPISODES)]
        folder = self.raw_dir.parent if self.raw_dir.is_file() else self.raw_dir
        missing = [line["source"] for line in sources if not (folder / line["source"]).is_file()]
        if missing:
            raise DatasetError(f"{folder}: has no '{missing[0]}'. Give the folder from which {self.root} was made")
        for line, task in zip(sources, tasks, strict=True):
            yield folder / line["source"], dataclasses.replace(options, task=task)

    def is_lossless(self, key: str, stored_as: str) -> bool:
        """Return whether a camera's images must equal the recorded ones.

        Args:
            key: Feature of the camera.
            stored_as: "jpg" if the recorded JPEGs can be copied, else "raw".
        """
        is_video = self._info()["features"][key]["dtype"] == layout.VIDEO
        return not is_video and not (self._conversion()["storage"]["image_format"] == "jpg" and stored_as == "raw")

    def features(self) -> Container[str]:
        """Return the keys of the dataset."""
        return self._info()["features"]

    def _options(self) -> RawOptions:
        kept = dict(self._conversion()["options"])
        kept["gripper_range"] = tuple(kept["gripper_range"])
        if kept.get("action_gripper_range") is not None:
            kept["action_gripper_range"] = tuple(kept["action_gripper_range"])
        kept["camera_map"] = tuple((a, b) for a, b in kept["camera_map"])
        return RawOptions(**kept)

    def _conversion(self) -> dict[str, Any]:
        path = self.root / layout.CONVERSION
        if not path.is_file():
            raise DatasetError(
                f"{self.root}: has no {layout.CONVERSION}, so 'make convert' has not made it from recordings. "
                f"Check it with 'make inspect DATA={self.root}'"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def _info(self) -> dict[str, Any]:
        return json.loads((self.root / layout.INFO).read_text(encoding="utf-8"))


@contextlib.contextmanager
def official_items(python: Path, root: Path) -> Iterator[tuple[dict[str, Any], Iterator[dict[str, Any]]]]:
    """Load a dataset with the official library.

    Args:
        python: Interpreter of its environment.
        root: The dataset.

    Yields:
        The header that the library sends, and its items in order, each with arrays and texts by key.

    Raises:
        DatasetError: The library cannot be started or does not load the dataset.
    """
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as log:
        settings = environment.offline_settings(Path(cache))
        command = [str(python), stream_items.__file__, str(root.resolve())]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=settings)
        except OSError as e:
            raise DatasetError(f"{python}: cannot be started ({e})") from e
        with process:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                if not line:
                    raise DatasetError(f"{root}: lerobot does not load it: {_end(process, log)}")
                header = json.loads(line)
                yield header, _read_items(process, header, root, log)
            finally:
                process.terminate()


def _read_items(
    process: subprocess.Popen[bytes], header: dict[str, Any], root: Path, log: IO[bytes]
) -> Iterator[dict[str, Any]]:
    stream = process.stdout
    assert stream is not None
    for i in range(header["num_items"]):
        line = stream.readline()
        if not line:
            raise DatasetError(f"{root}: lerobot fails at item {i}: {_end(process, log)}")
        item = json.loads(line)
        for key, (dtype, shape) in header["arrays"].items():
            data = stream.read(np.dtype(dtype).itemsize * math.prod(shape))
            item[key] = np.frombuffer(data, dtype).reshape(shape)
        yield item


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Return the last line that a process has logged.

    Its stream has ended, so the process is about to end too.
    """
    process.wait()
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a message"


def compare(dataset: ConvertedDataset, python: Path, *, on_item: Callable[[int], None] | None = None) -> Verdict:
    """Compare every item of a dataset with its recordings.

    Args:
        dataset: The dataset and its recordings.
        python: Interpreter of lerobot's environment.
        on_item: Called after each item, with the number of all items.

    Raises:
        DatasetError: The library does not load the dataset, or the recordings are not those of the dataset.
        EpisodeError: A recording cannot be read.
    """
    features: dict[str, Agreement] = {}
    with official_items(python, dataset.root) as (header, items):
        for expected in _expected_items(dataset):
            item = next(items, None)
            if item is None:
                raise DatasetError(
                    f"{dataset.root}: has {header['num_items']} items, expected one per frame: the recordings have more"
                )
            _compare_item(item, expected, features)
            if on_item is not None:
                on_item(header["num_items"])
        if next(items, None) is not None:
            raise DatasetError(
                f"{dataset.root}: has {header['num_items']} items, expected one per frame: the recordings have fewer"
            )
        return Verdict(header["lerobot"], header["num_items"], features)


@dataclasses.dataclass(frozen=True)
class _Expected:
    """What one item should contain."""

    place: str
    task: str | None
    arrays: dict[str, Shaped[np.ndarray, "..."]]
    lossy: frozenset[str]
    """Keys of images stored with loss."""


def _expected_items(dataset: ConvertedDataset) -> Iterator[_Expected]:
    # Both are counted over all episodes, as in the dataset.
    index = 0
    task_indices: dict[str | None, int] = {}
    for episode_index, (path, options) in enumerate(dataset.episodes()):
        with open_episode(path, options, cameras=()) as episode:
            task_index = task_indices.setdefault(episode.task, len(task_indices))
            whole = {"episode_index": episode_index, "task_index": task_index}
            keys = layout.camera_keys(dataset.root)
            cameras = {key: key.removeprefix(spec.IMAGE_KEY_PREFIX) for key in keys}
            lossy = frozenset(
                key
                for key, camera in cameras.items()
                if not dataset.is_lossless(key, "jpg" if episode.camera(camera).keeps_encoding else "raw")
            )
            # One item per frame, with what the converter should have written.
            for t in range(episode.num_frames):
                numbers = {**whole, "frame_index": t, "index": index}
                arrays = {key: np.array(value, np.int64) for key, value in numbers.items()}
                arrays |= {
                    "timestamp": np.array(t / episode.fps, np.float32),
                    **_vectors(episode, t, dataset.features()),
                }
                arrays |= {key: np.moveaxis(episode.image(camera, t), -1, 0) for key, camera in cameras.items()}
                yield _Expected(f"{path.name} frame {t}", episode.task, arrays, lossy)
                index += 1


def _vectors(episode: Episode, t: int, features: Container[str]) -> dict[str, Shaped[np.ndarray, " 14"]]:
    vectors = {
        spec.STATE_KEY: episode.state,
        spec.ACTION_KEY: episode.action,
        spec.VELOCITY_KEY: episode.velocity,
        spec.EFFORT_KEY: episode.effort,
    }
    return {key: values[t] for key, values in vectors.items() if values is not None and key in features}


def _compare_item(item: dict[str, Any], expected: _Expected, features: dict[str, Agreement]) -> None:
    for key, array in expected.arrays.items():
        agreement = features.setdefault(key, Agreement(is_lossless=key not in expected.lossy))
        if key not in item:
            agreement.add_fault(expected.place, "missing")
        elif key in item["inexact"]:
            agreement.add_fault(expected.place, "not made of 8-bit levels")
        else:
            agreement.add(item[key], array, expected.place)
    features.setdefault("task", Agreement()).add_text(item.get("task"), expected.task, expected.place)
