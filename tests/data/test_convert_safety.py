"""A conversion that fails, is interrupted or is not allowed leaves what was there, and says in one line what to do."""

import errno
import fcntl
import json
import shutil
import sys
import types

import h5py
import numpy as np
import pytest

from realman import cli
from realman import spec
from realman.data import convert
from realman.data.dataset import build
from realman.data.dataset import conversion
from realman.data.dataset import layout
from realman.data.dataset import staging as staging_module
from realman.data.dataset.from_raw import RawJob
from realman.data.dataset.staging import Staging
from realman.errors import DatasetError
from realman.errors import EpisodeError
from realman.errors import FlagError


def arguments(raw_dir, root, **options):
    return convert.Args(raw_dir=raw_dir, root=root, **{"workers": 1, **options})


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def run_command(monkeypatch, capsys, *flags):
    """Run the command line and return its exit code and its error lines."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        cli.run(convert.main, convert.Args)
    return ended.value.code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.fixture
def recordings(tmp_path, tiny_recordings):
    """A copy of the tiny recordings that a test may damage."""
    return shutil.copytree(tiny_recordings, tmp_path / "raw")


def set_nan(path):
    with h5py.File(path, "r+") as file:
        file["observations/qpos"][3, 1] = np.nan


def drop_camera(path):
    with h5py.File(path, "r+") as file:
        del file["observations/images/cam_low"]


def cut_a_jpeg(path, frame=3):
    with h5py.File(path, "r+") as file:
        file["observations/images/cam_high"][frame, 100:] = 0


FAULTS = {
    "missing DATA": (shutil.rmtree, "no such folder"),
    "empty DATA": (lambda raw: [p.unlink() for p in raw.iterdir()], "no recordings"),
    "not HDF5": (lambda raw: (raw / "episode_1.hdf5").write_text("x"), "episode_1.hdf5: is not an HDF5 file"),
    "truncated": (
        lambda raw: (raw / "episode_1.hdf5").write_bytes((raw / "episode_1.hdf5").read_bytes()[:-99]),
        "episode_1.hdf5: is cut off",
    ),
    "missing camera": (lambda raw: drop_camera(raw / "episode_1.hdf5"), "episode_1.hdf5: camera 'cam_low' is missing"),
    "NaN": (
        lambda raw: set_nan(raw / "episode_1.hdf5"),
        "'observations/qpos' is not finite at frame 3, right_shoulder",
    ),
    "damage inside": (lambda raw: cut_a_jpeg(raw / "episode_1.hdf5"), "cam_high' is a JPEG cut off"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_bad_input_ends_with_one_line_and_touches_nothing(recordings, tmp_path, monkeypatch, capsys, fault, overwrite):
    target = arguments(recordings, tmp_path / "out").target
    if overwrite:
        convert.main(arguments(recordings, tmp_path / "out"))
    before = content(tmp_path / "out")
    damage, message = FAULTS[fault]
    damage(recordings)
    flags = ["--raw-dir", recordings, "--root", tmp_path / "out", "--workers", 1]
    code, errors = run_command(monkeypatch, capsys, *flags, *(["--overwrite"] if overwrite else []))
    assert code == 1
    assert len(errors) == 1
    assert message in errors[0]
    assert target.exists() == overwrite
    assert {k: v for k, v in content(tmp_path / "out").items() if not k.split("/")[1].startswith(".")} == before


def test_all_bad_episodes_are_listed_one_per_line(recordings, tmp_path):
    set_nan(recordings / "episode_0.hdf5")
    drop_camera(recordings / "episode_2.hdf5")
    with pytest.raises(EpisodeError) as caught:
        convert.main(arguments(recordings, tmp_path / "out"))
    first, *lines = str(caught.value).splitlines()
    assert "2 of 3 episodes are bad" in first
    assert "--skip-bad" in first
    assert [line.split(":")[0].strip() for line in lines] == ["episode_0.hdf5", "episode_2.hdf5"]


@pytest.mark.parametrize("damage", [set_nan, cut_a_jpeg])
def test_skip_bad_writes_the_rest_and_says_what_was_left_out(recordings, tmp_path, damage):
    damage(recordings / "episode_1.hdf5")
    args = arguments(recordings, tmp_path / "out", skip_bad=True)
    convert.main(args)
    (recordings / "episode_1.hdf5").unlink()
    expected = arguments(recordings, tmp_path / "expected")
    convert.main(expected)
    found = content(args.target)
    rejected = found.pop(layout.REJECTED.as_posix()).decode()
    assert "episode_1.hdf5" in rejected
    assert "frame 3" in rejected
    assert found == content(expected.target)


@pytest.mark.parametrize("damage", [set_nan, cut_a_jpeg])
def test_skip_bad_does_not_write_an_empty_dataset(recordings, tmp_path, damage):
    for path in recordings.iterdir():
        damage(path)
    args = arguments(recordings, tmp_path / "out", skip_bad=True)
    with pytest.raises(EpisodeError, match="None is left to convert"):
        convert.main(args)
    assert not args.target.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_resumes_where_it_stopped(tiny_recordings, tmp_path, monkeypatch, error):
    args = arguments(tiny_recordings, tmp_path / "out")
    built = []
    build_one = RawJob.build

    def build_two(job, context):
        if len(built) == 2:
            (context.root / layout.data_path(job.episode_index)).write_bytes(b"half")
            raise error
        built.append(job.episode_index)
        return build_one(job, context)

    monkeypatch.setattr(RawJob, "build", build_two)
    if error is KeyboardInterrupt:
        assert convert.main(args) == 130
    else:
        with pytest.raises(error):
            convert.main(args)
    assert not args.target.exists()

    monkeypatch.setattr(
        RawJob, "build", lambda job, context: (built.append(job.episode_index), build_one(job, context))[1]
    )
    convert.main(args)
    assert built == [0, 1, 2]
    unbroken = arguments(tiny_recordings, tmp_path / "unbroken")
    monkeypatch.setattr(RawJob, "build", build_one)
    convert.main(unbroken)
    assert content(args.target) == content(unbroken.target)
    assert [p.name for p in args.target.parent.iterdir()] == ["dual_arm"]


@pytest.mark.parametrize("change", ["option", "recording", "damaged file"])
def test_what_was_finished_is_not_reused_after_a_change(recordings, tmp_path, monkeypatch, change):
    args = arguments(recordings, tmp_path / "out")
    monkeypatch.setattr(Staging, "publish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert convert.main(args) == 130
    monkeypatch.undo()
    if change == "option":
        args = arguments(recordings, tmp_path / "out", mode="video", video_codec="h264")
    elif change == "recording":
        with h5py.File(recordings / "episode_0.hdf5", "r+") as file:
            file["observations/qpos"][0, 6] = 0.125
    else:
        (Staging(args.target).path / layout.data_path(0)).write_bytes(b"half")
    fresh = arguments(recordings, tmp_path / "fresh", mode=args.mode, video_codec=args.video_codec)
    convert.main(args)
    convert.main(fresh)
    assert content(args.target) == content(fresh.target)


def test_an_existing_dataset_is_replaced_only_when_told(recordings, tmp_path):
    args = arguments(recordings, tmp_path / "out")
    convert.main(args)
    before = content(args.target)
    (recordings / "episode_2.hdf5").unlink()
    with pytest.raises(DatasetError, match=r"dataset already exists\. Give --overwrite"):
        convert.main(args)
    assert content(args.target) == before
    convert.main(arguments(recordings, tmp_path / "out", overwrite=True))
    assert len(layout.read_json_lines(args.target / layout.EPISODES)) == 2
    assert [p.name for p in args.target.parent.iterdir()] == ["dual_arm"]


def test_a_folder_that_is_no_dataset_is_never_replaced(recordings, tmp_path):
    args = arguments(recordings, recordings.parent, repo_id=recordings.name, overwrite=True)
    with pytest.raises(DatasetError, match="is not a LeRobot dataset"):
        convert.main(args)
    assert len(list(recordings.iterdir())) == 3


def test_a_run_killed_between_the_two_renames_gets_its_old_dataset_back(recordings, tmp_path):
    args = arguments(recordings, tmp_path / "out")
    convert.main(args)
    before = content(args.target)
    args.target.rename(args.target.with_name(".dual_arm.old"))
    with Staging(args.target):
        assert content(args.target) == before


def test_two_runs_do_not_write_the_same_dataset(tiny_recordings, tmp_path):
    args = arguments(tiny_recordings, tmp_path)
    with Staging(args.target), pytest.raises(DatasetError, match="another conversion is writing it"):
        convert.main(args)


def test_the_lock_holds_until_the_dataset_is_in_place(tiny_recordings, tmp_path, monkeypatch):
    args = arguments(tiny_recordings, tmp_path)
    moves = []
    move = type(args.target).rename

    def rename(path, target):
        with pytest.raises(DatasetError, match="another conversion is writing it"), Staging(args.target):
            pass
        moves.append(target)
        return move(path, target)

    monkeypatch.setattr(type(args.target), "rename", rename)
    convert.main(args)
    assert moves == [args.target]
    assert [p.name for p in args.target.parent.iterdir()] == ["dual_arm"]
    assert sorted(p.name for p in args.target.iterdir()) == ["data", "meta"]


def test_a_run_that_waited_behind_another_does_not_trust_the_moved_lock(tmp_path, monkeypatch):
    target = tmp_path / "dual_arm"
    flock = fcntl.flock

    def publish_first(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        shutil.move(Staging(target).path, target)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", publish_first)
    with pytest.raises(DatasetError, match="another conversion is writing it"), Staging(target):
        pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_dataset_that_another_run_made_meanwhile_is_not_replaced(tiny_recordings, tmp_path, monkeypatch, overwrite):
    args = arguments(tiny_recordings, tmp_path / "out")
    if overwrite:
        convert.main(args)
    check = conversion._check

    def check_slowly(request, pool):
        monkeypatch.setattr(conversion, "_check", check)
        other = arguments(tiny_recordings, tmp_path / "out", overwrite=overwrite, robot_type="the other one")
        convert.main(other)
        return check(request, pool)

    monkeypatch.setattr(conversion, "_check", check_slowly)
    with pytest.raises(DatasetError, match="another run has made it meanwhile"):
        convert.main(arguments(tiny_recordings, tmp_path / "out", overwrite=overwrite))
    assert json.loads((args.target / layout.INFO).read_text())["robot_type"] == "the other one"
    convert.main(arguments(tiny_recordings, tmp_path / "out", overwrite=True))


@pytest.mark.parametrize("behind", ["dataset", "empty folder", "nothing"])
def test_a_link_is_never_written_through(tiny_recordings, tmp_path, behind):
    real = tmp_path / "disk" / "real"
    if behind == "dataset":
        convert.main(arguments(tiny_recordings, tmp_path / "disk", repo_id="real"))
    elif behind == "empty folder":
        real.mkdir(parents=True)
    before = content(tmp_path / "disk") if real.exists() else None
    args = arguments(tiny_recordings, tmp_path / "out", overwrite=True)
    args.target.parent.mkdir(parents=True)
    args.target.symlink_to(real)
    with pytest.raises(DatasetError, match=r"is a link to '.*real', expected a folder.* --root and --repo-id"):
        convert.main(args)
    assert args.target.is_symlink()
    assert (content(tmp_path / "disk") if real.exists() else None) == before
    # Both remedies work.
    convert.main(arguments(tiny_recordings, real.parent, repo_id=real.name, overwrite=True))
    args.target.unlink()
    convert.main(args)


@pytest.mark.parametrize("how", ["plain", "behind a link"])
def test_recordings_inside_the_dataset_that_is_replaced_are_never_deleted(tiny_recordings, tmp_path, how):
    data = tmp_path / "out" / "realman" / "dual_arm"
    convert.main(arguments(tiny_recordings, tmp_path / "out"))
    raw = data / "raw"
    shutil.copytree(tiny_recordings, raw)
    source = raw
    if how == "behind a link":
        source = tmp_path / "link"
        source.symlink_to(raw)
    before = content(data)
    with pytest.raises(DatasetError, match=r"is inside .*Move it out, or choose another --repo-id or --root"):
        convert.main(arguments(source, tmp_path / "out", overwrite=True))
    assert content(data) == before
    # The remedy.
    shutil.move(raw, tmp_path / "moved")
    assert convert.main(arguments(tmp_path / "moved", tmp_path / "out", overwrite=True)) == 0


def test_a_dataset_inside_the_one_that_is_replaced_is_never_deleted(tiny_recordings, tmp_path):
    out = tmp_path / "out" / "realman" / "dual_arm"
    convert.main(arguments(tiny_recordings, tmp_path / "out"))
    shutil.copytree(out, tmp_path / "copy")
    shutil.move(tmp_path / "copy", out / "old")
    with pytest.raises(DatasetError, match="is inside"):
        convert.main(arguments(out / "old", tmp_path / "out", overwrite=True))
    assert (out / "old" / "meta" / "info.json").is_file()


def test_a_disk_that_is_too_small_is_found_out_first(tiny_recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(DatasetError, match=r"disk has 0\.0 GB free"):
        convert.main(arguments(tiny_recordings, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_keeps_the_finished_episodes(tiny_recordings, tmp_path, monkeypatch):
    args = arguments(tiny_recordings, tmp_path)

    def full(root, fingerprint, record):
        if record.episode_index == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        staging_module.save_record(root, fingerprint, record)

    monkeypatch.setattr(build, "save_record", full)
    with pytest.raises(DatasetError, match=r"disk is full\. Free some space and run again"):
        convert.main(args)
    assert not args.target.exists()
    assert (Staging(args.target).path / layout.data_path(0)).is_file()


def test_frames_that_a_video_cannot_hold_are_found_out_first(tmp_path, write_recording):
    write_recording(tmp_path / "raw" / "episode_0.hdf5", size=(47, 64))
    with pytest.raises(DatasetError, match=r"47x64 px\. Use --mode image"):
        convert.main(arguments(tmp_path / "raw", tmp_path / "out", mode="video"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "../other"}, "is not a dataset name"),
        ({"repo_id": ""}, "is not a dataset name"),
        ({"workers": 0}, "--workers: found 0, expected 1 to 1024"),
        ({"cameras": ()}, "--cameras names no camera"),
        ({"gripper_range": "0-1"}, "is not CLOSED:OPEN"),
        ({"episodes": (7,)}, r"no recording of number \[7\]"),
        ({"cameras": (*spec.CAMERAS, "cam_top")}, "camera 'cam_top' is missing"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tiny_recordings, tmp_path, options, message):
    with pytest.raises((DatasetError, EpisodeError, FlagError), match=message):
        convert.main(arguments(tiny_recordings, tmp_path, **options))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read as JSON"), ("[]", "is not an object of texts"), ("{}", "has no task for 3")],
)
def test_a_task_file_that_does_not_fit_is_refused(tiny_recordings, tmp_path, text, message):
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with pytest.raises(EpisodeError, match=message):
        convert.main(arguments(tiny_recordings, tmp_path, task_file=path))
