"""Spread work over processes that never outlive their parent.

A single worker is this process itself.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED
from concurrent.futures import Executor
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import importlib
import itertools
import multiprocessing
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
import os
import signal
import threading
from typing import Any, TypeVar

from realman.errors import DatasetError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_PRELOAD = ("realman.data.dataset.from_raw", "realman.data.dataset.upgrade")
_DASK_TIMEOUT_S = 10


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InlineExecutor(Executor):
    """An executor that runs the work in the calling thread, at submission."""

    def submit(self, fn: Callable[..., ResultT], /, *args: Any, **kwargs: Any) -> Future[ResultT]:
        """Run `fn` now and return its result or exception as a future."""
        future: Future[ResultT] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:
            future.set_exception(e)
        return future


@dataclasses.dataclass(frozen=True)
class WorkerPool:
    """Any executor of `concurrent.futures`, and its capacity."""

    executor: Executor
    workers: int
    """Number of jobs that run at the same time."""
    threads: int = 1
    """Number of threads that each job may use for codecs."""

    @property
    def max_pending(self) -> int:
        """Largest number of jobs submitted at a time.

        Twice the number of workers keeps all of them busy, and memory stays bounded.
        """
        return 2 * self.workers


@contextlib.contextmanager
def local_pool(workers: int | None, num_jobs: int) -> Iterator[WorkerPool]:
    """Open a pool of processes on this machine.

    Cores without a process of their own are used for threads.

    Args:
        workers: Number of processes. None means one per core.
        num_jobs: Number of jobs. There are never more processes than jobs.

    Raises:
        DatasetError: A worker died.
    """
    cores = available_cores() if workers is None else workers
    used = max(1, min(cores, num_jobs))
    with process_executor(used) as executor:
        yield WorkerPool(executor, used, threads=max(1, cores // used))


@contextlib.contextmanager
def dask_pool(address: str) -> Iterator[WorkerPool]:
    """Open a pool of the workers of a Dask cluster.

    They must see the recordings and the dataset's folder under the same paths as this machine.

    Args:
        address: Address of the scheduler, such as `tcp://10.0.0.5:8786`.

    Raises:
        DatasetError: Dask is not installed, the scheduler does not answer, there are no workers, or a worker died.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as e:
        raise DatasetError(
            "--dask needs Dask on this machine and its workers. Run: pip install 'dask[distributed]'"
        ) from e
    try:
        client = distributed.Client(address, timeout=_DASK_TIMEOUT_S)
    except (OSError, ValueError) as e:
        raise DatasetError(f"{address}: no Dask scheduler answers ({e}). Start one with 'dask scheduler'") from e
    with client:
        workers = sum(client.nthreads().values())
        if not workers:
            raise DatasetError(f"{address}: the Dask cluster has no workers. Start some with 'dask worker {address}'")
        try:
            yield WorkerPool(client.get_executor(), workers)
        except distributed.scheduler.KilledWorker as e:
            raise DatasetError(
                f"{address}: a Dask worker died while working on an episode ({e}). Give workers more memory"
            ) from e


@contextlib.contextmanager
def process_executor(workers: int) -> Iterator[Executor]:
    """Open an executor of `workers` processes. One worker means this process.

    An exception in the block ends all workers at once.

    Raises:
        DatasetError: A worker died.
    """
    if workers == 1:
        yield InlineExecutor()
        return
    context = _start_server()
    parent_pipe, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(parent_pipe,))
    try:
        yield pool
    except BrokenProcessPool as e:
        raise DatasetError("a worker process died, probably for lack of memory. Use a smaller --workers") from e
    finally:
        # After a normal end all workers are idle. After an exception this ends them in the middle of their work.
        parent_end.close()
        pool.shutdown(wait=True, cancel_futures=True)
        parent_pipe.close()


def _start_server() -> ForkServerContext:
    """Start the server process from which workers are forked.

    It imports what they need, once, while this process continues. Workers are not forked from this process, because it
    has threads (HDF5, Arrow, OpenCV) and because a fork would inherit the staging folder's lock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    # Only this process handles Ctrl-C. Processes inherit a signal that is ignored, so it can never reach them.
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        forkserver.ensure_running()
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
    return context


def _start_worker(parent_pipe: Connection) -> None:
    """Make this worker end when its parent ends, for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(parent_pipe,), daemon=True).start()


def _exit_with_parent(parent_pipe: Connection) -> None:
    # Nothing is ever sent. The read returns when the parent closes its end or is gone, even after kill -9.
    with contextlib.suppress(EOFError, OSError):
        parent_pipe.recv()
    os._exit(1)


def as_completed(
    executor: Executor, fn: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, max_pending: int
) -> Iterator[tuple[ItemT, ResultT]]:
    """Apply `fn` to all items and yield (item, result) as they finish.

    At most `max_pending` items are submitted at a time.
    """
    waiting = iter(items)
    pending: dict[Future[ResultT], ItemT] = {}
    while True:
        for item in itertools.islice(waiting, max_pending - len(pending)):
            pending[executor.submit(fn, item)] = item
        if not pending:
            return
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield pending.pop(future), future.result()
