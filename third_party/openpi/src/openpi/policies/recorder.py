"""Record the inputs and outputs of a policy.

You can inspect the records later, or send the same requests to another policy. A record is one file `step_<n>.npz` that
`numpy.load` reads without pickle. It has an array for each leaf, with keys like `inputs/state` and `outputs/actions`. Color
images are stored as PNG (lossless, about half the size). Their keys end with the axis order and `.png`, such as
`inputs/images/cam_high.hwc.png`. Next to the records, `metadata.json` has the metadata of the policy that was recorded last.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import queue
import re
import tempfile
import threading
import time
from typing import Any
import zipfile

import numpy as np

from openpi.policies import record_leaves
from openpi.shared.errors import DataError
from openpi.shared.printable import printable
from openpi_client import base_policy as _base_policy

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 10 * 2**30
"""Enough for about ten hours of two requests per second with three images of 224 x 224."""

METADATA_FILE = "metadata.json"

_STEP_FILE = re.compile(r"step_(\d+)\.npz")
_TIME_KEY = "time_s"

# Maximum number of records that wait for the disk. Further ones are left out, because a robot must not wait for a disk.
_MAX_WAITING = 16
_MAX_WAITING_BYTES = 256 * 2**20

# How long to leave a disk alone that refused a record.
_RETRY_S = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One call of a policy."""

    step: int
    time_s: float
    """Unix time of the answer."""
    inputs: dict[str, Any]
    """The observation as the policy received it. Text is str."""
    outputs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecordingState:
    """What became of the calls so far."""

    num_written: int
    num_left_out: int
    """Calls that were not recorded, because the disk was too slow or refused them."""
    problem: str | None
    """Why the latest record was not written. None if it was."""


class PolicyRecorder(_base_policy.BasePolicy):
    """Writes each call of a policy to a folder.

    The oldest records are deleted beyond a size limit. A separate thread writes. Numbers continue after the records already
    in the folder. Nothing that cannot be written ends the inference or the recording: such records are left out and counted,
    and a disk that refuses them (full, read-only, gone) is tried again later. If the disk is too slow, records are left out,
    too.
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
        self._waiting: queue.Queue[tuple[dict[str, Any], int] | None] = queue.Queue(_MAX_WAITING)
        self._waiting_bytes = _Counter()
        self._num_written = self._num_refused = 0
        self._problem: str | None = None
        self._retry_s = 0.0
        # A folder that cannot be written is reported before the first request.
        self._attempt(self._folder.open)
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

    @property
    def recording(self) -> RecordingState:
        """What became of the calls so far."""
        return RecordingState(self._num_written, self.num_left_out + self._num_refused, self._problem)

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
        num_bytes = _num_bytes(record)
        try:
            if self._waiting_bytes.value + num_bytes > _MAX_WAITING_BYTES:
                raise queue.Full
            self._waiting.put_nowait((record, num_bytes))
            self._waiting_bytes.add(num_bytes)
        except queue.Full:
            self.num_left_out += 1

    def _write(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            record, num_bytes = waiting
            if time.monotonic() < self._retry_s or not self._attempt(functools.partial(self._folder.add, record)):
                self._num_refused += 1
            else:
                self._num_written += 1
            self._waiting_bytes.add(-num_bytes)
            del waiting, record

    def _attempt(self, write: Callable[[], None]) -> bool:
        """Return whether something was written, and report why not."""
        try:
            write()
        except Exception as e:
            problem = printable(f"{type(e).__name__}: {e}")
            if problem != self._problem:
                logger.error("a record was not written to %s (%s). The server continues", self._folder.path, problem)
            self._problem = problem
            # Only the disk needs rest. The next record may lack what this one failed for.
            self._retry_s = time.monotonic() + _RETRY_S if isinstance(e, OSError) else 0.0
            return False
        if self._problem is not None:
            logger.info("recording to %s again", self._folder.path)
            self._problem = None
        return True


class _Counter:
    """A number that several threads change."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, change: int) -> None:
        with self._lock:
            self.value += change


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
            tree = record_leaves.unflatten(file)
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
        self._max_bytes = max_bytes
        self._files: list[tuple[pathlib.Path, int]] = []
        self._bytes = self._next_step = 0
        self._is_open = False

    def open(self) -> None:
        """Make the folder, try to write, and find its records."""
        self.path.mkdir(parents=True, exist_ok=True)
        # The records of a program that was killed while it wrote.
        for partial in self.path.glob("step_*.partial"):
            partial.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=self.path):
            pass
        self._files = [(file, file.stat().st_size) for file in find_records(self.path) if file.is_file()]
        self._bytes = sum(size for _, size in self._files)
        self._next_step = 1 + max((_step_of(file) for file in find_records(self.path)), default=-1)
        self._is_open = True

    def add(self, record: Mapping[str, Any]) -> None:
        # The folder may be gone since the last record, and another one may be in its place.
        if not self._is_open or not self.path.is_dir():
            self.open()
        if self._metadata is not None:
            text = json.dumps(self._metadata, indent=2, default=str, skipkeys=True)
            (self.path / METADATA_FILE).write_text(text + "\n")
            self._metadata = None
        file = self.path / f"step_{self._next_step}.npz"
        size = _save(file, record_leaves.flatten(record))
        self._next_step += 1
        self._files.append((file, size))
        self._bytes += size
        # Delete the oldest records.
        while self._bytes > self._max_bytes and len(self._files) > 1:
            oldest, oldest_size = self._files.pop(0)
            oldest.unlink(missing_ok=True)
            self._bytes -= oldest_size


def _save(file: pathlib.Path, leaves: Mapping[str, np.ndarray]) -> int:
    """Write a whole record or nothing, and return its size."""
    # It has another name until it is complete, so that a reader never finds half a file.
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            # No leaf contains objects. numpy 1.26 would store the argument allow_pickle as an array.
            np.savez(stream, **leaves)  # type: ignore[arg-type]  # names are paths, never "allow_pickle"
        size = partial.stat().st_size
        partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return size


def _num_bytes(tree: Any) -> int:
    """Return the memory that arrays and texts take."""
    if isinstance(tree, Mapping):
        return sum(map(_num_bytes, tree.values()))
    return tree.nbytes if isinstance(tree, np.ndarray) else len(tree) if isinstance(tree, str | bytes) else 0


def _frozen(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _frozen(value) for key, value in tree.items()}
    return tree.copy() if isinstance(tree, np.ndarray) and tree.flags.writeable else tree
