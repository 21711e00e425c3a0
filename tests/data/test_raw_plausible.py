"""Doubts about recordings: real faults are found, and what robots and cameras do every day is not."""

import dataclasses

import h5py
import numpy as np
import pytest

from realman import spec
from realman.data.checks import check_episode
from realman.data.dataset.stats import level_counts
from realman.data.raw import RawOptions
from realman.data.raw import open_episode
from realman.data.raw.options import parse_camera_map
from realman.data.raw.options import parse_gripper_range
from realman.data.raw.plausible import CameraWatch
from realman.data.raw.plausible import clock_rate
from realman.data.raw.plausible import is_black
from realman.data.raw.plausible import jump_problems
from realman.data.raw.plausible import timestamp_problems
from realman.errors import EpisodeError

FPS = 50
STILL = np.full((200, 14), 0.5, np.float32)


def moving(dim, num_frames=200):
    """One of the 14 numbers swings, the others rest."""
    values = np.full((num_frames, 14), 0.5, np.float32)
    values[:, dim] = 0.5 + 0.4 * np.sin(3 * np.arange(num_frames) / FPS)
    return values


def watch(frames, state, camera="cam_high"):
    eye = CameraWatch(camera, state, FPS)
    for t, frame in enumerate(frames):
        eye.add_frame(t, np.frombuffer(frame, np.uint8) if isinstance(frame, bytes) else frame)
    return eye.problems()


def test_a_jump_is_named_with_joint_frame_and_size():
    values = STILL.copy()
    values[70:, 9] += 0.5
    (text,) = jump_problems("observations/qpos", values, FPS)
    assert "left_elbow jumps by 0.500 rad at frame 70, 6.4 times" in text
    assert "--accept jump" in text


@pytest.mark.parametrize("dim", spec.JOINT_DIMS)
def test_full_speed_and_one_lost_frame_are_no_jump(dim):
    step = spec.ARM_SPEED_RAD_S[dim % 7] / FPS
    values = STILL.copy()
    values[:, dim] = step * (np.arange(200) + (np.arange(200) >= 30))
    assert list(jump_problems("action", values, FPS)) == []


def test_a_gripper_may_snap():
    values = STILL.copy()
    values[100:, list(spec.GRIPPER_DIMS)] = 0
    assert list(jump_problems("action", values, FPS)) == []


def test_a_single_frame_has_no_speed():
    assert list(jump_problems("action", STILL[:1], FPS)) == []


@pytest.mark.parametrize("unit_s", [1, 1e-3, 1e-6, 1e-9])
def test_sound_clocks_of_any_unit_pass(unit_s):
    jitter = np.random.default_rng(0).uniform(-0.004, 0.004, 200)
    times = (1.7e9 + np.arange(200) / FPS + jitter) / unit_s
    assert list(timestamp_problems(times, FPS, has_fps=True)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: np.where(np.arange(200) == 90, np.nan, t), "not finite at frame 90"),
        (lambda t: np.where(np.arange(200) == 90, 0, t), "do not grow at frame 90"),
        (lambda t: t * 5 / 3, "are 30.0 frames per second apart, expected 50 as the recording states"),
        (lambda t: t + 0.4 * (np.arange(200) >= 90), "no frames for 0.42 s before frame 90"),
    ],
)
def test_unsound_clocks_are_found(change, message):
    (text,) = timestamp_problems(change(10 + np.arange(200) / FPS), FPS, has_fps=True)
    assert message in text
    assert "--accept timestamps" in text


def test_an_assumed_rate_is_no_yardstick_for_the_clock():
    assert list(timestamp_problems(np.arange(200) / 30, FPS, has_fps=False)) == []


def test_a_camera_that_stands_still_while_its_arm_moves_is_frozen():
    frames = [b"%d" % min(t, 40) for t in range(200)]
    found = watch(frames, moving(1), "cam_right_wrist")
    assert list(found) == ["frozen"]
    assert "for 3.2 s from frame 40" in found["frozen"]


@pytest.mark.parametrize(
    ("frames", "state", "camera"),
    [
        ([b"same"] * 200, STILL, "cam_high"),  # nothing moves: a simulated camera
        ([b"same"] * 200, moving(8), "cam_right_wrist"),  # the other arm moves
        ([b"same"] * 200, moving(6), "cam_right_wrist"),  # only the gripper moves
        ([b"%d" % (t // 4) for t in range(200)], moving(1), "cam_high"),  # a slow camera
    ],
)
def test_equal_images_of_a_still_scene_or_a_slow_camera_are_not_frozen(frames, state, camera):
    assert watch(frames, state, camera) == {}


def test_raw_images_are_compared_as_well():
    frames = [np.full((4, 4, 3), min(t, 40), np.uint8) for t in range(200)]
    assert list(watch(frames, moving(1))) == ["frozen"]


def test_black_images_are_black_and_dark_ones_are_not():
    rng = np.random.default_rng(0)
    assert is_black(level_counts(np.zeros((8, 8, 3), np.uint8)))
    assert is_black(level_counts(rng.integers(0, 9, (48, 64, 3), np.uint8)))
    assert not is_black(level_counts(rng.integers(0, 20, (48, 64, 3), np.uint8)))
    assert not is_black(level_counts(np.full((48, 64, 3), 17, np.uint8)))
    dark = np.zeros((48, 64, 3), np.uint8)
    dark[10:14, 10:30] = 90
    assert not is_black(level_counts(dark))


def test_recorded_clocks_and_jumps_make_an_episode_bad_unless_accepted(tmp_path, write_recording):
    state = STILL[:60].copy()
    state[30:, 0] += 0.4
    path = write_recording(tmp_path / "episode_0.hdf5", num_frames=60, state=state).path
    with h5py.File(path, "r+") as file:
        file["timestamps"] = np.arange(60)[::-1] / FPS
    problem = check_episode(path, RawOptions(), spec.CAMERAS, accept=()).problem
    assert "right_waist jumps" in problem
    assert "timestamps do not grow at frame 1" in problem
    assert check_episode(path, RawOptions(), spec.CAMERAS, accept=("jump", "timestamps")).problem is None


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.arange(5), "'timestamps' has shape (5,), expected (6,)"),
        ([b"2026-11-27T10:00:00"] * 6, "'timestamps' holds no numbers (object), expected times in s, ms, us or ns"),
        (np.zeros((6, 2)), "'timestamps' has shape (6, 2)"),
        (np.float64(3), "'timestamps' has shape ()"),
    ],
)
def test_timestamps_of_another_form_are_a_doubt(tmp_path, write_recording, times, message):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        file["timestamps"] = times
    problem = check_episode(path, RawOptions(), spec.CAMERAS, accept=()).problem
    assert problem.startswith(f"episode_0.hdf5: {message}")
    assert problem.endswith("Keep it with --accept timestamps")
    assert check_episode(path, RawOptions(), spec.CAMERAS, accept=("timestamps",)).problem is None


@pytest.mark.parametrize("unit_s", [1, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("rate", [30, 29.97, 15, 100])
def test_an_assumed_rate_that_the_clock_contradicts_is_refused_with_the_rate(tmp_path, write_recording, rate, unit_s):
    path = write_recording(tmp_path / "episode_0.hdf5", fps=None, num_frames=20).path
    with h5py.File(path, "r+") as file:
        file["timestamps"] = 1.7e9 / unit_s + np.arange(20) / rate / unit_s
    # The doubt about clocks may be accepted, but nobody has stated the assumed rate.
    problem = check_episode(path, RawOptions(), spec.CAMERAS).problem
    assert f"and no frame rate is stated. Give --fps {round(rate)}" in problem
    facts = check_episode(path, RawOptions(fps=round(rate)), spec.CAMERAS, accept=()).facts
    assert (facts.fps, facts.has_fps) == (round(rate), True)


@pytest.mark.parametrize("fault", [np.nan, 0.0])
def test_a_fault_of_the_clock_does_not_hide_its_rate(tmp_path, write_recording, fault):
    path = write_recording(tmp_path / "episode_0.hdf5", fps=None, num_frames=20).path
    with h5py.File(path, "r+") as file:
        times = np.arange(20) / 30
        times[7] = fault
        file["timestamps"] = times
    accept = ("timestamps",)
    assert "Give --fps 30" in check_episode(path, RawOptions(), spec.CAMERAS, accept=accept).problem
    assert check_episode(path, RawOptions(fps=30), spec.CAMERAS, accept=accept).facts.fps == 30


def test_a_clock_that_is_too_coarse_shows_no_rate():
    assert clock_rate(np.floor(np.arange(100) / 30), 50) is None


def test_a_stated_rate_that_the_clock_contradicts_is_a_doubt_with_two_remedies(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5", num_frames=20).path
    with h5py.File(path, "r+") as file:
        file["timestamps"] = np.arange(20) / 30
    problem = check_episode(path, RawOptions(), spec.CAMERAS, accept=()).problem
    assert "30.0 frames per second apart, expected 50 as the recording states. Give --fps 30, or keep it" in problem
    facts = check_episode(path, RawOptions(fps=30), spec.CAMERAS, accept=()).facts
    assert facts.fps == 30
    assert facts.notes == ("recorded with fps 50, read as 30 as --fps says",)
    assert check_episode(path, RawOptions(), spec.CAMERAS, accept=("timestamps",)).facts.fps == 50
    assert "expected 60 as --fps says" in check_episode(path, RawOptions(fps=60), spec.CAMERAS, accept=()).problem


def test_cameras_can_be_exchanged_and_renamed(tmp_path, write_recording):
    cameras = ("cam_top", "cam_left_wrist", "cam_right_wrist")
    truth = write_recording(tmp_path / "episode_0.hdf5", cameras=cameras)
    pairs = parse_camera_map(["cam_top=cam_high", "cam_left_wrist=cam_right_wrist", "cam_right_wrist=cam_left_wrist"])
    with open_episode(truth.path, RawOptions(camera_map=pairs)) as episode:
        assert episode.cameras == ("cam_high", "cam_left_wrist", "cam_right_wrist")
        for recorded, name in pairs:
            np.testing.assert_array_equal(episode.image(name, 2), truth.frames[recorded][2])
        assert episode.camera_place("cam_high") == "'observations/images/cam_top'"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["cam_high"], "is not RECORDED=NAME"),
        (["cam_high=a/b"], "is not RECORDED=NAME"),
        (["cam_high=a", "cam_high=b"], "names 'cam_high' twice"),
        (["cam_high=a", "cam_low=a"], "names 'a' twice"),
        (["cam_top=cam_high"], "no camera 'cam_top' to rename, only cam_high"),
        (["cam_high=cam_low"], "two cameras would be called 'cam_low'"),
    ],
)
def test_a_camera_map_that_does_not_fit_is_refused(tmp_path, write_recording, pairs, message):
    path = write_recording(tmp_path / "episode_0.hdf5").path

    def read():
        open_episode(path, dataclasses.replace(RawOptions(), camera_map=parse_camera_map(pairs)))

    with pytest.raises(EpisodeError, match=message):
        read()


def test_gripper_ranges_are_read_from_text():
    assert parse_gripper_range("1000:-3.5") == (1000.0, -3.5)
    with pytest.raises(EpisodeError, match="is not CLOSED:OPEN"):
        parse_gripper_range("0..1")
