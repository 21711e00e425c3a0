"""Worker processes: results, errors and ends of the parent reach everybody, and nobody stays behind."""

import functools
import multiprocessing
import operator
import os
import subprocess
import sys
import time

import pytest

from realman.data.dataset.pool import as_completed
from realman.data.dataset.pool import process_executor
from realman.errors import DatasetError

ROUND = functools.partial(operator.floordiv, 12)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_gives_its_result(workers):
    with process_executor(workers) as executor:
        assert sorted(as_completed(executor, ROUND, [1, 2, 3, 4], max_pending=2)) == [(1, 12), (2, 6), (3, 4), (4, 3)]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_reaches_the_caller(workers):
    with pytest.raises(ZeroDivisionError), process_executor(workers) as executor:
        list(as_completed(executor, ROUND, [1, 0, 2], max_pending=2))
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_no_endless_wait():
    with pytest.raises(DatasetError, match="a worker process died"), process_executor(2) as executor:
        list(as_completed(executor, os._exit, [9], max_pending=1))


def test_an_error_of_the_caller_ends_workers_in_the_middle_of_their_work():
    def interrupt():
        with process_executor(2) as executor:
            executor.submit(time.sleep, 600)
            executor.submit(abs, -1).result()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert multiprocessing.active_children() == []


def test_workers_do_not_outlive_a_parent_that_is_killed():
    code = (
        "import os, signal, time\n"
        "from realman.data.dataset.pool import process_executor\n"
        "if __name__ == '__main__':\n"
        "    with process_executor(2) as executor:\n"
        "        executor.submit(time.sleep, 600)\n"
        "        executor.submit(abs, -1).result()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The workers hold the other end of stdout, so reading it to the end waits until the last of them is gone.
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert parent.returncode == -9
