"""Episodes recorded while a policy runs: contents, conversion and failures."""

import json
import threading
import time

import cv2
import h5py
import numpy as np
import pytest

from openpi.training.lerobot.dataset import LeRobotDataset
from realman.data import convert
from realman.data.raw.episode import open_episode
from realman.errors import EpisodeError
from realman.robots.robot import RobotObservation
from realman.runtime.recording import episode_file
from realman.runtime.recording.recorder import Recorder

CAMERAS = ("cam_high", "cam_left_wrist")


def observation(t: int, size: tuple[int, int] = (48, 64)) -> RobotObservation:
    state = 0.3 * np.sin(0.05 * t + np.arange(14))
    state[[6, 13]] = 0.5
    y, x = np.mgrid[: size[0], : size[1]]
    images = {
        name: np.stack([100 + 80 * np.sin(0.1 * (x + y) + t + c + i) for c in range(3)], -1).astype(np.uint8)
        for i, name in enumerate(CAMERAS)
    }
    return RobotObservation(state, images, 100.0 + t / 50)


def recorder(folder, **options) -> Recorder:
    return Recorder(folder, 50.0, options.pop("task", lambda: "fold"), **options)


def feed(rec: Recorder, frames: range) -> None:
    for t in frames:
        seen = observation(t)
        rec.see(seen, seen.state + 0.01)


def wait_until(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_recorded_run_holds_what_was_measured_sent_and_seen(tmp_path):
    with recorder(tmp_path) as rec:
        feed(rec, range(3))  # nobody asked for these
        rec.start()
        feed(rec, range(20))
    assert rec.saved == [tmp_path / "episode_0.hdf5"]
    with open_episode(rec.saved[0]) as episode:
        assert (episode.num_frames, episode.fps, episode.task, episode.cameras) == (20, 50, "fold", CAMERAS)
        truth = observation(7)
        np.testing.assert_allclose(episode.state[7], truth.state, atol=1e-6)
        np.testing.assert_allclose(episode.action[7], truth.state + 0.01, atol=1e-6)
        for name in CAMERAS:
            assert np.abs(episode.image(name, 7).astype(int) - truth.images[name]).mean() < 4
            assert episode.encoded_image(name, 7) is not None
    with h5py.File(rec.saved[0]) as file:
        assert file.attrs["ended_by"] == "the run's end"
        np.testing.assert_allclose(file[episode_file.TICK_TIMES][()], np.arange(20) / 50, atol=1e-9)


def test_recordings_become_a_dataset_that_training_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "lerobot"))
    folder = tmp_path / "recordings"
    for count in (12, 9):
        with recorder(folder) as rec:
            rec.start()
            feed(rec, range(count))
    args = convert.Args(raw_dir=folder, repo_id="robot/rollouts", cameras=CAMERAS, workers=1)
    assert convert.main(args) == 0
    root = tmp_path / "lerobot/robot/rollouts"
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"], info["fps"]) == ("v2.1", 2, 21, 50)
    data = LeRobotDataset("robot/rollouts", image_keys=["observation.images.cam_high"])
    assert len(data) == 21
    item = data[12 + 4]
    np.testing.assert_allclose(np.asarray(item["observation.state"]), observation(4).state, atol=1e-6)
    # The recorded JPEG itself, not encoded twice.
    with open_episode(folder / "episode_1.hdf5") as episode:
        jpeg = episode.encoded_image("cam_high", 4)
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(np.asarray(item["observation.images.cam_high"]), pixels.transpose(2, 0, 1))


def test_an_episode_can_be_ended_discarded_and_begun_again_and_numbers_continue(tmp_path):
    (tmp_path / "episode_4.hdf5").touch()
    with recorder(tmp_path) as rec:
        rec.toggle()
        feed(rec, range(3))
        rec.discard()
        rec.toggle()
        feed(rec, range(4))
        rec.toggle()
        rec.toggle()
        feed(rec, range(5))
        rec.toggle()
        feed(rec, range(6))
    assert [p.name for p in rec.saved] == ["episode_5.hdf5", "episode_6.hdf5"]
    assert [open_episode(p).num_frames for p in rec.saved] == [4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episode_4.hdf5", "episode_5.hdf5", "episode_6.hdf5"]


def test_a_new_prompt_begins_a_new_episode_as_one_has_one_task(tmp_path):
    task = ["fold"]
    with recorder(tmp_path, task=lambda: task[0]) as rec:
        rec.start()
        feed(rec, range(3))
        task[0] = "tidy up"
        feed(rec, range(4))
    assert [open_episode(p).task for p in rec.saved] == ["fold", "tidy up"]


def test_a_run_that_fails_keeps_its_recording_and_says_how_it_ended(tmp_path):
    with pytest.raises(RuntimeError), recorder(tmp_path) as rec:  # noqa: PT012 - the recorder must see it pass
        rec.start()
        feed(rec, range(3))
        raise RuntimeError("camera unplugged")
    with h5py.File(rec.saved[0]) as file:
        assert file.attrs["ended_by"] == "camera unplugged"


def test_a_killed_run_leaves_no_recording_and_the_next_one_clears_up(tmp_path, caplog):
    file = episode_file.EpisodeFile(tmp_path / "episode_0.hdf5", CAMERAS, 50, "fold")
    file.append(np.zeros(14), np.zeros(14), dict.fromkeys(CAMERAS, b"jpeg"), 0.0)
    file._file.flush()
    assert [p.name for p in tmp_path.iterdir()] == [".episode_0.hdf5.partial"]
    with pytest.raises(EpisodeError, match="no recordings"):
        convert.main(convert.Args(raw_dir=tmp_path, repo_id="a/b", root=tmp_path / "out"))
    recorder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "removed, because the run that recorded it was killed" in caplog.text
    file._file.close()


def test_a_disk_that_is_too_slow_loses_the_recording_loudly_and_never_holds_up_the_loop(tmp_path, monkeypatch, caplog):
    gate = threading.Event()
    append = episode_file.EpisodeFile.append

    def slow(self, *args) -> None:
        gate.wait(20)
        append(self, *args)

    monkeypatch.setattr(episode_file.EpisodeFile, "append", slow)
    with recorder(tmp_path, max_waiting_bytes=10 * 2 * 48 * 64 * 3) as rec:
        rec.start()
        began = time.monotonic()
        feed(rec, range(50))
        assert time.monotonic() - began < 10
        assert not rec.is_watching
        assert "LOST" in rec.status()
        assert rec._queue.qsize() <= 12
        gate.set()
    assert "RECORDING LOST" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_simulated_time_waits_for_the_disk_instead(tmp_path):
    with recorder(tmp_path, max_waiting_bytes=1, may_wait=True) as rec:
        rec.start()
        feed(rec, range(40))
    assert open_episode(rec.saved[0]).num_frames == 40


def test_a_full_disk_ends_the_recording_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(self, *args) -> None:
        raise EpisodeError(f"{self.path}: cannot be written (No space left on device). Free some space")

    with recorder(tmp_path) as rec:
        rec.start()
        feed(rec, range(2))
        wait_until(lambda: rec._queue.empty())
        monkeypatch.setattr(episode_file.EpisodeFile, "append", full)
        feed(rec, range(3))
        wait_until(lambda: not rec.is_watching)
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported_before_anything_moves(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EpisodeError, match="cannot be written"):
        recorder(tmp_path / "file" / "folder")


def test_an_image_seen_twice_is_encoded_once(tmp_path, monkeypatch):
    calls = []
    encode = cv2.imencode
    monkeypatch.setattr(cv2, "imencode", lambda *args: calls.append(1) or encode(*args))
    seen = observation(0)
    with recorder(tmp_path) as rec:
        rec.start()
        for _ in range(5):
            rec.see(seen, seen.state)
    assert len(calls) == len(CAMERAS)
    assert open_episode(rec.saved[0]).num_frames == 5
