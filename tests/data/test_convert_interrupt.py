"""Kills, Ctrl-C and full disks, on real processes and devices: no half-made dataset is ever seen, and the next run resumes."""

import errno
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import av
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from realman.data import convert
from realman.data.dataset import files
from realman.data.dataset import layout
from realman.data.dataset.existing import ExistingDataset
from realman.data.dataset.progress import FramesBar
from realman.data.dataset.staging import BuildContext
from realman.data.dataset.staging import Staging
from realman.data.dataset.upgrade import UpgradeJob
from realman.errors import DatasetError

DEADLINE_S = 60

# The second episode never ends, so the run is in the middle of it whenever the signal comes.
STUCK = """
import time
from realman import cli
from realman.data import convert
from realman.data.dataset.from_raw import RawJob

build = RawJob.build

def build_first_only(job, context):
    if job.episode_index == 1:
        context.report(1, 3)
        time.sleep(600)
    return build(job, context)

RawJob.build = build_first_only
cli.run(convert.main, convert.Args)
"""


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def arguments(raw_dir, root, **options):
    return convert.Args(raw_dir=raw_dir, root=root, **{"workers": 1, **options})


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def start(code: list[str], raw_dir: Path, root: Path, workers: int) -> subprocess.Popen:
    """A conversion in a process group of its own, as a terminal starts it."""
    flags = ["--raw-dir", str(raw_dir), "--root", str(root), "--workers", str(workers), "--overwrite"]
    return subprocess.Popen(
        [sys.executable, *code, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background ignores Ctrl-C, and what is ignored is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_the_old_dataset_and_the_finished_episodes(
    tmp_path, tiny_recordings, write_recording, kind
):
    write_recording(tmp_path / "old" / "episode_0.hdf5", num_frames=2)
    args = arguments(tiny_recordings, tmp_path / "out", overwrite=True)
    convert.main(arguments(tmp_path / "old", tmp_path / "out"))
    old = content(args.target)

    process = start(["-c", STUCK], tiny_recordings, tmp_path / "out", workers=1)
    partial = Staging(args.target).path
    wait_for(partial / ".build" / "episode_000001.progress", process)
    os.killpg(process.pid, kind)
    _, errors = process.communicate(timeout=DEADLINE_S)

    if kind == signal.SIGINT:
        assert process.returncode == 130
        assert [line for line in errors.splitlines() if "error" in line.lower()] == [
            f"error: interrupted: '{args.target}' is unchanged. Run again to resume, finished episodes are kept"
        ]
        assert "Traceback" not in errors
    else:
        assert process.returncode == -kind
    assert content(args.target) == old
    finished = partial / layout.data_path(0)
    before = finished.stat()

    convert.main(args)
    kept = (args.target / layout.data_path(0)).stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    fresh = arguments(tiny_recordings, tmp_path / "fresh")
    convert.main(fresh)
    assert content(args.target) == content(fresh.target)


def test_ctrl_c_with_worker_processes_is_one_line_at_any_moment(tmp_path, write_recording):
    first = write_recording(tmp_path / "raw" / "episode_0.hdf5", num_frames=60, size=(2, 2), form="raw").path
    with h5py.File(first, "r+") as file:
        # Noise is slow to encode: the signal, sent when the first file of any episode is there, comes in the middle.
        images = file["observations/images"]
        for camera in list(images):
            del images[camera]
        images["cam_high"] = np.random.default_rng(0).integers(0, 255, (60, 480, 640, 3), np.uint8)
    for i in range(1, 6):
        (tmp_path / "raw" / f"episode_{i}.hdf5").hardlink_to(first)
    command = ["-m", "realman", "convert", "--cameras", "cam_high"]
    process = start(command, tmp_path / "raw", tmp_path / "out", workers=2)
    target = arguments(tmp_path / "raw", tmp_path / "out").target
    wait_for(Staging(target).path / "data" / "chunk-000", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert not target.exists()


def on_full_disk(monkeypatch, mode):
    """From now on, the tables or videos of all episodes go to a device that is always full."""
    if mode == "image":
        real = pq.ParquetWriter

        def open_full(path, *args, **kwargs):
            path.touch()
            return real("/dev/full", *args, **kwargs)

        monkeypatch.setattr(pq, "ParquetWriter", open_full)
    else:
        open_file = av.open
        monkeypatch.setattr(
            av, "open", lambda path, *args, **kwargs: open_file("/dev/full" if "w" in args else path, *args, **kwargs)
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("mode", ["image", "video"])
def test_a_disk_that_is_full_is_an_error_of_one_line(tmp_path, tiny_recordings, monkeypatch, mode):
    args = arguments(tiny_recordings, tmp_path, mode=mode, video_codec="h264")
    on_full_disk(monkeypatch, mode)
    with pytest.raises(DatasetError, match=r"disk is full\. Free some space and run again, finished episodes are kept"):
        convert.main(args)
    assert not args.target.exists()
    monkeypatch.undo()
    convert.main(args)
    assert args.target.exists()


def test_a_disk_that_is_full_at_the_very_end_keeps_the_episodes(tmp_path, tiny_recordings, monkeypatch):
    args = arguments(tiny_recordings, tmp_path)

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(layout, "write_json", full)
    with pytest.raises(DatasetError, match="disk is full"):
        convert.main(args)
    assert not args.target.exists()
    assert (Staging(args.target).path / layout.data_path(2)).is_file()


def test_a_file_is_sent_to_the_disk_while_it_grows_and_its_errors_are_not_lost(tmp_path, monkeypatch):
    path = tmp_path / "table"
    path.write_bytes(b"rows")
    synced = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.set())
    sync = files.EarlySync(path)
    assert synced.wait(DEADLINE_S)
    sync.close()

    failed = threading.Event()

    def full(handle):
        failed.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    sync = files.EarlySync(path)
    assert failed.wait(DEADLINE_S)
    with pytest.raises(OSError, match="No space left"):
        sync.close()


def test_a_folder_that_may_not_be_written_is_an_error_of_one_line(tmp_path, tiny_recordings):
    (tmp_path / "realman").write_text("a file where the folder should go")
    with pytest.raises(DatasetError, match="cannot be written"):
        convert.main(arguments(tiny_recordings, tmp_path))


def test_the_progress_bar_moves_within_an_episode(tmp_path):
    dataset = ExistingDataset(tmp_path, {"fps": 50, "features": {}}, tasks=(), episodes=())
    jobs = [
        UpgradeJob(dataset, index, num_frames, tasks=(), files=(("", ""),), stats={})
        for index, num_frames in enumerate((100, 1000))
    ]
    with Staging(tmp_path / "dataset") as staging, FramesBar(jobs, staging) as bar:
        assert bar.num_done() == 0
        BuildContext(staging.path).report(1, 400)
        assert bar.num_done() == 400
        bar.finish(jobs[0])
        assert bar.num_done() == 500
        bar.finish(jobs[1])
        assert bar.num_done() == 1100
