"""Disk space: the checks before a run and before each save, and what remains when a disk fills up anyway."""

import errno
import fcntl
import logging
import os
import pathlib
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from openpi.training.host import free_space
from openpi.training.host import run_lock

MIB = 2**20


def test_a_tree_has_the_size_of_its_arrays():
    assert free_space.tree_bytes({"a": jnp.zeros((3, 5)), "b": [np.zeros(7, np.int8)]}) == 67


def test_a_run_without_space_for_one_checkpoint_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(free_space, "free_bytes", lambda _: 50 * MIB)
    words = r"a checkpoint takes 100.0 MiB, 50.0 MiB are free\. .*--checkpoint-base-dir"
    with pytest.raises(free_space.DiskFullError, match=words):
        free_space.check_start(tmp_path, 100 * MIB, num_kept=1, reusable=0)
    free_space.check_start(tmp_path, 100 * MIB, num_kept=1, reusable=60 * MIB)


def test_a_run_that_will_use_up_the_disk_is_warned(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(free_space, "free_bytes", lambda _: 250 * MIB)
    free_space.check_start(tmp_path, 100 * MIB, num_kept=1, reusable=0)
    assert caplog.text == ""
    free_space.check_start(tmp_path, 100 * MIB, num_kept=2, reusable=0)
    assert "up to 3 checkpoints" in caplog.text


def test_a_save_in_the_middle_is_left_out_and_the_run_continues(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(free_space, "free_bytes", lambda _: MIB)
    assert not free_space.has_room(tmp_path, 2 * MIB, is_last=False)
    assert free_space.has_room(tmp_path, MIB, is_last=False)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_the_last_save_waits_for_space_but_not_forever(tmp_path, monkeypatch, caplog):
    free = iter([MIB, MIB, 2 * MIB])
    monkeypatch.setattr(free_space, "free_bytes", lambda _: next(free))
    monkeypatch.setattr(free_space, "_POLL_S", 0)
    assert free_space.has_room(tmp_path, 2 * MIB, is_last=True)
    assert "so that the run is not lost" in caplog.text
    monkeypatch.setattr(free_space, "free_bytes", lambda _: MIB)
    monkeypatch.setattr(free_space, "_LAST_CHECKPOINT_WAIT_S", 0)
    with pytest.raises(free_space.DiskFullError, match="No space was freed"):
        free_space.has_room(tmp_path, 2 * MIB, is_last=True)


def test_a_signal_ends_the_wait_for_space_but_the_signal_that_ended_the_run_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(free_space, "_POLL_S", 0)
    monkeypatch.setattr(free_space, "free_bytes", lambda _: MIB)
    asked = iter([False, False, True])
    with pytest.raises(free_space.DiskFullError, match="Asked to stop while waiting for space"):
        free_space.has_room(tmp_path, 2 * MIB, is_last=True, is_ending=lambda: next(asked))
    free = iter([MIB, MIB, 2 * MIB])
    monkeypatch.setattr(free_space, "free_bytes", lambda _: next(free))
    assert free_space.has_room(tmp_path, 2 * MIB, is_last=True, is_ending=lambda: True)


def test_a_disk_that_fills_up_during_a_save_is_one_line_and_the_last_checkpoint_is_kept(tmp_path):
    """A limit on the file size stands for the full disk: the same system call fails, in the same thread."""
    manager = ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(max_to_keep=1))
    rng = np.random.default_rng(0)

    def save(step: int) -> None:
        with free_space.explain(tmp_path):
            manager.save(step, args=ocp.args.PyTreeSave({"w": rng.integers(0, 255, 4 * MIB, np.uint8)}))
            manager.wait_until_finished()

    save(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
        with pytest.raises(free_space.DiskFullError, match=r"the disk is full.*continue with --resume"):
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = ocp.CheckpointManager(tmp_path)
    assert again.all_steps() == [1]
    assert again.restore(1, args=ocp.args.PyTreeRestore())["w"].shape == (4 * MIB,)


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(OSError, match="permission"), free_space.explain(tmp_path):
        raise PermissionError("permission denied")


def test_space_is_claimed_on_the_disk_of_the_checkpoints_only(tmp_path):
    claim = free_space.check_start(tmp_path / "run", 10 * MIB, num_kept=2, reusable=4 * MIB)
    assert claim.size == 26 * MIB
    assert claim.on_disk_of(tmp_path / "dataset") == 26 * MIB
    assert claim.on_disk_of(pathlib.Path("/proc")) == 0


def test_a_run_is_locked_until_it_is_released(tmp_path):
    first, second = run_lock.RunLock(tmp_path), run_lock.RunLock(tmp_path)
    first.take()
    first.take()
    words = (
        f"{tmp_path}: process {os.getpid()} on .* trains this run. Wait for it or stop it, or choose another --exp-name"
    )
    with pytest.raises(run_lock.RunInUseError, match=words) as e:
        second.take()
    assert "\n" not in str(e.value)
    first.release()
    assert list(tmp_path.iterdir()) == []
    second.take()
    second.release()


def test_a_lock_in_a_deleted_folder_is_taken_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock = run_lock.RunLock(folder)
    lock.take()
    (folder / run_lock.FILE_NAME).unlink()
    lock.take()
    with pytest.raises(run_lock.RunInUseError):
        run_lock.RunLock(folder).take()
    lock.release()


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from openpi.training.host import run_lock\n"
        "lock = run_lock.RunLock(pathlib.Path(sys.argv[1]))\n"
        "lock.take()\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        lock = run_lock.RunLock(tmp_path)
        with pytest.raises(run_lock.RunInUseError, match=f"process {process.pid} on "):
            lock.take()
        process.kill()
    assert (tmp_path / run_lock.FILE_NAME).exists()
    lock.take()
    lock.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_locks_is_said_once_and_used(tmp_path, monkeypatch, caplog, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = run_lock.RunLock(tmp_path)
    lock.take()
    lock.take()
    assert caplog.text.count("this disk has no locks") == 1
    lock.release()
