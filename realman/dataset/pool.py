"""Work spread over processes that never outlive their parent, or done in this process when one worker is enough."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED
from concurrent.futures import Executor
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
import contextlib
import itertools
import multiprocessing
from multiprocessing.connection import Connection
import os
import signal
import threading
from typing import Any, TypeVar

from realman.errors import DatasetError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InlineExecutor(Executor):
    """An executor that does the work in the calling thread, at submission."""

    def submit(self, fn: Callable[..., ResultT], /, *args: Any, **kwargs: Any) -> Future[ResultT]:
        """Run `fn` now; its result or exception is in the future returned."""
        future: Future[ResultT] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:
            future.set_exception(e)
        return future


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """An executor of `workers` processes; one worker means this process. An exception in the block ends all workers at once.

    Raises:
        DatasetError: A worker died without a word.
    """
    if workers == 1:
        yield InlineExecutor()
        return
    # Not fork: the parent has threads (HDF5, Arrow, OpenCV), and a fork would inherit the staging folder's lock.
    context = multiprocessing.get_context("spawn")
    lifeline, lifeline_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(lifeline,))
    try:
        yield pool
    except BrokenProcessPool as e:
        raise DatasetError("a worker process died, probably for lack of memory; use a smaller --workers") from e
    finally:
        # After a normal end all workers are idle; after an exception this ends them in the middle of their work.
        lifeline_end.close()
        pool.shutdown(wait=True, cancel_futures=True)
        lifeline.close()


def _start_worker(lifeline: Connection) -> None:
    """Prepare a worker: Ctrl-C is the parent's business, and the worker ends when the parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(lifeline,), daemon=True).start()


def _exit_with_parent(lifeline: Connection) -> None:
    # Nothing is ever sent: the read returns when the parent closes its end or is gone, even after kill -9.
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)


def as_completed(
    executor: Executor, fn: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, ahead: int
) -> Iterator[tuple[ItemT, ResultT]]:
    """Apply `fn` to all items, at most `ahead` of them submitted at a time; yields (item, result) as they finish."""
    waiting = iter(items)
    pending: dict[Future[ResultT], ItemT] = {}
    while True:
        for item in itertools.islice(waiting, ahead - len(pending)):
            pending[executor.submit(fn, item)] = item
        if not pending:
            return
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield pending.pop(future), future.result()
