"""A progress bar that also moves within long episodes."""

from collections.abc import Sequence
import threading
from types import TracebackType
from typing import Any

from tqdm import tqdm

from realman.data.dataset.build import EpisodeJob
from realman.data.dataset.staging import Staging
from realman.data.dataset.staging import read_progress

_POLL_S = 0.5


class FramesBar:
    """Show frames done, rate and time left.

    A thread reads the progress that workers report in the staging folder. All workers share that folder: threads,
    processes, and the machines of a cluster.
    """

    def __init__(self, jobs: Sequence[EpisodeJob], staging: Staging) -> None:
        self._staging = staging
        self._open = {job.episode_index: job.num_frames for job in jobs}
        self._total = sum(self._open.values())
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "FramesBar":
        self._bar: tqdm[Any] = tqdm(total=self._total, desc="convert", unit=" frames", unit_scale=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._show()
        self._bar.close()

    def finish(self, job: EpisodeJob) -> None:
        """Count all frames of a job as done."""
        with self._lock:
            self._open.pop(job.episode_index, None)

    def num_done(self) -> int:
        """Return the number of frames done, including those of unfinished episodes."""
        with self._lock:
            left = dict(self._open)
        begun = sum(min(n, left.get(index, 0)) for index, n in read_progress(self._staging.path).items())
        return self._total - sum(left.values()) + begun

    def _poll(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._show()

    def _show(self) -> None:
        self._bar.update(max(0, self.num_done() - self._bar.n))
