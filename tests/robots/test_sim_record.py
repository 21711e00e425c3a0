"""Recordings of the simulated cell: the file's layout, resuming, refusing."""

import cv2
import h5py
import numpy as np
import pytest

from realman import spec
from realman.errors import EpisodeError
from realman.errors import RealmanError
from realman.robots.sim import episode
from realman.robots.sim import record
from realman.robots.sim import task

FPS = 10.0


def job(path, n=0):
    return record.Job(path, seed=(5, n), fps=FPS, shadows=False, height_px=48, width_px=64)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sim") / "train" / "episode_0.hdf5"
    result = record.record(job(path))
    return path, result


def test_file_holds_what_a_teleoperation_recorder_writes(recording):
    path, result = recording
    with h5py.File(path) as file:
        for name in ("action", "observations/qpos", "observations/qvel", "observations/effort"):
            assert file[name].shape == (result.num_frames, 14)
            assert file[name].dtype == np.float32
            assert np.isfinite(file[name][:]).all()
        assert tuple(sorted(file["observations/images"])) == tuple(sorted(spec.CAMERAS))
        assert file["compress_len"].shape == (len(spec.CAMERAS), result.num_frames)
        assert file.attrs["sim"]
        assert file.attrs["compress"]
        assert file.attrs["fps"] == FPS
        assert file.attrs["language_instruction"] == task.TASK
    assert episode.count_frames(path) == result.num_frames


def test_rows_are_whole_jpegs_padded_with_zeros(recording):
    path, _ = recording
    with h5py.File(path) as file:
        lengths = file["compress_len"][:]
        for camera, sizes in zip(spec.CAMERAS, lengths, strict=True):
            rows = file[f"observations/images/{camera}"][:]
            assert rows.shape[1] == sizes.max()
            for row, size in zip(rows, sizes, strict=True):
                assert not row[size:].any()
                assert row[:2].tobytes() == b"\xff\xd8"
                assert row[size - 2 : size].tobytes() == b"\xff\xd9"
            assert cv2.imdecode(rows[0], cv2.IMREAD_COLOR).shape == (48, 64, 3)


def test_jpeg_keeps_the_channel_order():
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 200
    decoded = cv2.imdecode(episode.encode_jpeg(image), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(decoded.reshape(-1, 3).mean(axis=0), [200, 0, 0], atol=4)


def test_camera_images_follow_the_motion(recording):
    path, _ = recording
    with h5py.File(path) as file:
        frames = file["observations/images/cam_high"][:]
    first, middle = (cv2.imdecode(frames[i], cv2.IMREAD_COLOR).astype(float) for i in (0, len(frames) // 2))
    assert np.abs(first - middle).mean() > 2


def test_nothing_but_the_finished_file_is_left(recording):
    path, _ = recording
    assert [p.name for p in path.parent.iterdir()] == ["episode_0.hdf5"]


def test_same_seed_records_the_same_numbers(recording, tmp_path):
    path, _ = recording
    again = tmp_path / "again.hdf5"
    record.record(job(again))
    with h5py.File(path) as a, h5py.File(again) as b:
        for name in ("action", "observations/qpos", "observations/effort", "compress_len"):
            np.testing.assert_array_equal(a[name][:], b[name][:])


def test_interrupted_recording_leaves_no_episode(tmp_path, monkeypatch):
    path = tmp_path / "episode_0.hdf5"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(episode, "_write_images", fail)
    with pytest.raises(EpisodeError, match=r"episode_0.hdf5: cannot be written .*No space left"):
        record.record(job(path))
    assert not path.exists()


def test_run_records_both_splits_and_a_second_run_keeps_them(tmp_path, capsys):
    args = record.Args(out_dir=tmp_path / "sample", num_episodes=1, num_heldout=1, fps=2.0)
    record.main(args)
    paths = [args.out_dir / split / "episode_0.hdf5" for split in ("train", "heldout")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    assert capsys.readouterr().out == f"{args.out_dir}\n"

    paths[1].unlink()
    record.main(args)
    assert paths[0].stat().st_mtime_ns == before[0][0], "kept"
    with h5py.File(paths[1]) as file, h5py.File(paths[0]) as train:
        assert episode.count_frames(paths[1]) > 5
        assert not np.array_equal(file["observations/qpos"][0], train["observations/qpos"][0])
        first = file["observations/images/cam_high"][0]
    assert cv2.imdecode(first, cv2.IMREAD_COLOR).shape == (480, 640, 3)


def test_overwrite_records_every_episode_again(tmp_path, monkeypatch):
    recorded = []

    def fake_record_all(jobs, workers):
        recorded.extend(jobs)
        return iter([record.Result(num_frames=1, num_failed=0, backend="rays")] * len(jobs))

    args = record.Args(out_dir=tmp_path, num_episodes=2, num_heldout=0, overwrite=True)
    for planned in record.plan_jobs(args):
        planned.path.parent.mkdir(exist_ok=True)
        planned.path.write_bytes(b"old")
    monkeypatch.setattr(record, "record_all", fake_record_all)
    record.main(args)
    assert recorded == record.plan_jobs(args)


def test_damaged_episode_stops_the_run_and_stays(tmp_path):
    args = record.Args(out_dir=tmp_path, num_episodes=1, num_heldout=0)
    path = record.plan_jobs(args)[0].path
    path.parent.mkdir()
    path.write_bytes(b"not hdf5")
    with pytest.raises(EpisodeError, match=r"episode_0.hdf5: not a complete recording .*--overwrite"):
        record.main(args)
    assert path.read_bytes() == b"not hdf5"


def test_training_heldout_and_client_scenes_are_drawn_apart(tmp_path):
    jobs = record.plan_jobs(record.Args(out_dir=tmp_path, num_episodes=3, num_heldout=3))
    draws = [np.random.default_rng([*job.seed, 0]).integers(2**62) for job in jobs]
    draws += [np.random.default_rng(task_seed).integers(2**62) for task_seed in range(3)]
    assert len(set(draws)) == 9


@pytest.mark.parametrize(("flag", "value"), [("num_episodes", 0), ("fps", 0.0), ("workers", 0), ("num_heldout", -1)])
def test_invalid_numbers_are_refused_with_the_flag(flag, value):
    with pytest.raises(RealmanError, match=f"--{flag.replace('_', '-')}: found {value:g}, expected "):
        record.main(record.Args(**{flag: value}))
