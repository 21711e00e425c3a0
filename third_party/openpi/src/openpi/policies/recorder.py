"""Record the inputs and outputs of a policy.

You can inspect the records later, or send the same requests to another policy. A record is one file `step_<n>.npz` that
`numpy.load` reads without pickle. It has an array for each leaf, with keys like `inputs/state` and `outputs/actions`. Color
images are stored as PNG (lossless, about half the size). Their keys end with the axis order and `.png`, such as
`inputs/images/cam_high.hwc.png`. Next to the records, `metadata.json` has the metadata of the policy that was recorded last.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import logging
import pathlib
import queue
import re
import threading
import time
from typing import Any
import zipfile

import cv2
import numpy as np

from openpi.shared.errors import DataError
from openpi_client import base_policy as _base_policy

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 10 * 2**30
"""Enough for about ten hours of two requests per second with three images of 224 x 224."""

METADATA_FILE = "metadata.json"

_STEP_FILE = re.compile(r"step_(\d+)\.npz")
_IMAGE_KEY = re.compile(r"(.+)\.(hwc|chw)\.png")
_TIME_KEY = "time_s"

# Fast rather than small. The best level takes ten times as long and saves a tenth.
_PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1)

# Maximum number of records that wait for the disk. Further ones are left out, because a robot must not wait for a disk.
_MAX_WAITING = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One call of a policy."""

    step: int
    time_s: float
    """Unix time of the answer."""
    inputs: dict[str, Any]
    """The observation as the policy received it. Text is str."""
    outputs: dict[str, Any]


class PolicyRecorder(_base_policy.BasePolicy):
    """Writes each call of a policy to a folder.

    The oldest records are deleted beyond a size limit. A separate thread writes. Numbers continue after the records already
    in the folder. A full disk ends the recording, not the inference. If the disk is too slow, records are left out and
    counted.
    """

    def __init__(
        self,
        policy: _base_policy.BasePolicy,
        record_dir: str | pathlib.Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """Record `policy` to `record_dir`.

        Args:
            policy: The policy to record.
            record_dir: Folder of the records.
            max_bytes: Maximum size of all records. The newest one is always kept.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}, expected at least 1")
        self._policy = policy
        self._folder = _Folder(pathlib.Path(record_dir), max_bytes, self.metadata)
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(_MAX_WAITING)
        self._writer = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._writer.start()
        self.num_left_out = 0
        """Calls that were not recorded because the disk was too slow."""
        self.is_recording = True
        """While this is False, calls are passed on without a record."""
        logger.info("recording requests and answers to %s, at most %.1f GB", record_dir, max_bytes / 1e9)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the recorded policy."""
        return getattr(self._policy, "metadata", {})

    def infer(self, obs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the policy's answer and record it."""
        results = self._policy.infer(obs, **kwargs)
        self._note(obs, results)
        return results

    def infer_batch(self, observations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the policy's answers and record them."""
        results = self._policy.infer_batch(observations)  # type: ignore[attr-defined]
        for obs, result in zip(observations, results, strict=True):
            self._note(obs, result)
        return results

    def warm_up_requests(self, example: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the warm-up requests of the recorded policy."""
        return getattr(self._policy, "warm_up_requests", lambda *_: [])(example, result)

    def reset(self) -> None:
        """Reset the recorded policy."""
        self._policy.reset()

    def close(self) -> None:
        """Write the waiting records and stop recording.

        Later calls are passed on without a record.
        """
        self.is_recording = False
        if self._writer.is_alive():
            self._waiting.put(None)
            self._writer.join()
        if self.num_left_out:
            logger.warning("%d answers were not recorded because the disk was too slow", self.num_left_out)

    def _note(self, obs: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        if not self.is_recording:
            return
        # The caller may change its arrays later, so they are copied. Those of a server's request are read-only.
        record = {_TIME_KEY: time.time(), "inputs": _frozen(obs), "outputs": _frozen(results)}
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.num_left_out += 1

    def _write(self) -> None:
        has_failed = False
        while (record := self._waiting.get()) is not None:
            if has_failed:
                continue
            try:
                self._folder.add(dict(_leaves(record)))
            except OSError:
                has_failed, self.is_recording = True, False
                logger.exception("recording to %s stopped", self._folder.path)


def find_records(directory: str | pathlib.Path) -> list[pathlib.Path]:
    """Return the records of a folder, the oldest first."""
    return sorted(filter(lambda path: _STEP_FILE.fullmatch(path.name), pathlib.Path(directory).iterdir()), key=_step_of)


def read_record(path: pathlib.Path) -> Record:
    """Read one record.

    Images are uint8 arrays in their original axis order.

    Raises:
        DataError: The file is damaged or not a record.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tree = _unflatten(dict(_decoded(file)))
        return Record(_step_of(path), float(tree[_TIME_KEY]), tree["inputs"], tree["outputs"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as e:
        raise DataError(f"{path}: not a complete record of a policy ({type(e).__name__}: {e})") from e


def _step_of(path: pathlib.Path) -> int:
    return int(path.stem.removeprefix("step_"))


class _Folder:
    """Numbered files whose total size is limited."""

    def __init__(self, path: pathlib.Path, max_bytes: int, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self._metadata: Mapping[str, Any] | None = metadata  # until it is written
        path.mkdir(parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._files = [(file, file.stat().st_size) for file in find_records(path)]
        self._bytes = sum(size for _, size in self._files)
        self._next_step = 1 + max((_step_of(file) for file, _ in self._files), default=-1)

    def add(self, leaves: Mapping[str, np.ndarray]) -> None:
        if self._metadata is not None:
            (self.path / METADATA_FILE).write_text(json.dumps(self._metadata, indent=2, default=str) + "\n")
            self._metadata = None
        file = self.path / f"step_{self._next_step}.npz"
        # It has another name until it is complete, so that a reader never finds half a file.
        partial = file.with_suffix(".partial")
        with partial.open("wb") as stream:
            # No leaf contains objects. numpy 1.26 would store the argument allow_pickle as an array.
            np.savez(stream, **leaves)  # type: ignore[arg-type]  # keys are paths, never "allow_pickle"
        size = partial.stat().st_size
        partial.replace(file)
        self._next_step += 1
        self._files.append((file, size))
        self._bytes += size
        # Delete the oldest records.
        while self._bytes > self._max_bytes and len(self._files) > 1:
            oldest, oldest_size = self._files.pop(0)
            oldest.unlink(missing_ok=True)
            self._bytes -= oldest_size


def _frozen(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _frozen(value) for key, value in tree.items()}
    return tree.copy() if isinstance(tree, np.ndarray) and tree.flags.writeable else tree


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Flatten nested dicts to arrays.

    None gives nothing. Objects are written as their text.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    elif tree is not None:
        array = np.asarray(tree)
        if array.dtype == np.uint8 and array.ndim == 3 and array.size and 3 in (array.shape[0], array.shape[-1]):
            yield _encoded(path, array)
        else:
            yield path, np.asarray(str(tree)) if array.dtype.hasobject else array


def _encoded(path: str, image: np.ndarray) -> tuple[str, np.ndarray]:
    layout = "hwc" if image.shape[-1] == 3 else "chw"
    rows = image if layout == "hwc" else np.moveaxis(image, 0, -1)
    # The channels are stored in the order that the library expects, so that viewers show the right colors.
    _, png = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(rows), cv2.COLOR_RGB2BGR), _PNG_OPTIONS)
    return f"{path}.{layout}.png", png.reshape(-1)


def _decoded(file: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    for key, value in file.items():
        if match := _IMAGE_KEY.fullmatch(key):
            image = cv2.imdecode(value, cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError(f"'{key}' is not a PNG")
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            yield match[1], image if match[2] == "hwc" else np.moveaxis(image, -1, 0)
        else:
            yield key, value.item() if value.ndim == 0 else value


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
