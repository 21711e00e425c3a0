"""Checks before a conversion: sound recordings pass, and every fault is found, placed and explained in one line."""

import h5py
import numpy as np
import pytest

from realman import spec
from realman.data.checks import check_episode
from realman.data.checks import compare_episodes
from realman.data.raw import RawOptions


def problem_of(path, options=None, cameras=spec.CAMERAS):
    report = check_episode(path, options or RawOptions(), cameras)
    assert (report.facts is None) != (report.problem is None)
    return report.problem


def motion(num_frames=6):
    return 0.2 + 0.5 * np.linspace(0, 1, num_frames)[:, None] * np.ones(14)


def test_a_sound_recording_gives_its_facts(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5", cameras=(*spec.CAMERAS, "cam_extra")).path
    facts = check_episode(path, RawOptions(), spec.CAMERAS).facts
    assert facts is not None
    assert facts.image_sizes == tuple((camera, 48, 64) for camera in spec.CAMERAS)
    assert (facts.num_frames, facts.fps, facts.is_jpeg, facts.has_velocity) == (6, 50, True, True)
    assert facts.other_cameras == ("cam_extra",)


@pytest.mark.parametrize("name", ["observations/qpos", "action"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_named_with_frame_and_joint(tmp_path, write_recording, name, value):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        file[name][3:5, 9] = value
    assert f"'{name}' is not finite at frame 3, left_elbow [9] (2 such values)" in problem_of(path)


@pytest.mark.parametrize("extra", ["velocity", "effort"])
@pytest.mark.parametrize("fault", ["nan", "width", "length", "text", "missing", "group"])
def test_extra_numbers_have_no_veto_unless_they_are_asked_for(tmp_path, write_recording, extra, fault):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    name = {"velocity": "observations/qvel", "effort": "observations/effort"}[extra]
    with h5py.File(path, "r+") as file:
        if fault == "nan":
            file[name][3:5, 9] = np.nan
        else:
            del file[name]
            values = {"width": np.zeros((6, 12)), "length": np.zeros((5, 14)), "text": [b"a"] * 6}
            if fault == "group":
                file[f"{name}/right"] = np.zeros((6, 7))
            elif fault != "missing":
                file[name] = values[fault]
    facts = check_episode(path, RawOptions(), spec.CAMERAS).facts
    assert (facts.has_velocity, facts.has_effort) == (extra != "velocity", extra != "effort")
    assert (name in dict(facts.left_out)) == (fault != "missing")
    problem = check_episode(path, RawOptions(), spec.CAMERAS, extras=(extra,)).problem
    assert problem.startswith(f"episode_0.hdf5: '{name}' ")
    assert problem.endswith(f"Leave {extra} out of --extras")
    other = "effort" if extra == "velocity" else "velocity"
    assert check_episode(path, RawOptions(), spec.CAMERAS, extras=(other,)).problem is None


def test_degrees_called_radians_are_suspected(tmp_path, write_recording):
    state = motion()
    state[:, list(spec.JOINT_DIMS)] = np.rad2deg(state[:, list(spec.JOINT_DIMS)])
    path = write_recording(tmp_path / "episode_0.hdf5", state=state, action=state).path
    problem = problem_of(path)
    assert "'observations/qpos'" in problem
    assert "frame 5" in problem
    assert "give --angle-unit deg" in problem
    assert problem_of(path, RawOptions(angle_unit="deg")) is None


def test_radians_called_degrees_are_suspected(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5", state=motion(), action=motion()).path
    assert "look like radians" in problem_of(path, RawOptions(angle_unit="deg"))


def test_a_joint_beyond_its_limit_is_named_with_the_limit(tmp_path, write_recording):
    state = motion()
    state[4, 1] = 2.5
    path = write_recording(tmp_path / "episode_0.hdf5", state=state).path
    problem = problem_of(path)
    assert "right_shoulder is 2.500 rad at frame 4, limit 2.269 rad" in problem
    assert "degrees" not in problem


def test_a_sensors_overshoot_of_a_degree_is_no_fault(tmp_path, write_recording):
    state = motion()
    state[4, 1] = spec.UPPER[1] + np.deg2rad(1.0)
    assert problem_of(write_recording(tmp_path / "episode_0.hdf5", state=state).path) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1000), (1000, 0)])
def test_a_gripper_in_thousandths_needs_its_range(tmp_path, write_recording, low, high):
    state = motion()
    state[:, [6, 13]] = low + state[:, [6, 13]] * (high - low)
    path = write_recording(tmp_path / "episode_0.hdf5", state=state, action=state).path
    assert "outside 0:1. Give --gripper-range" in problem_of(path)
    assert problem_of(path, RawOptions(gripper_range=(low, high))) is None


def test_a_gripper_in_fractions_called_thousandths_is_suspected(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5", state=motion(), action=motion()).path
    assert "look like 0:1" in problem_of(path, RawOptions(gripper_range=(0, 1000)))


def test_all_missing_cameras_are_named_at_once_with_those_recorded(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5", cameras=("cam_high", "cam_left_wrist")).path
    problem = problem_of(path)
    assert "camera 'cam_low', 'cam_right_wrist' is missing (recorded: cam_high, cam_left_wrist)" in problem
    assert problem_of(path, cameras=("cam_high",)) is None


def test_a_recording_without_a_task_asks_for_one(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5", task=None).path
    assert "Give --task" in problem_of(path)
    assert problem_of(path, RawOptions(task="wave")) is None


def test_a_frame_that_cannot_be_decoded_is_found(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        file["observations/images/cam_low"][5, 2:] = 0
    assert "'observations/images/cam_low' is a JPEG cut off" in problem_of(path)


def test_several_faults_of_one_recording_share_one_line(tmp_path, write_recording):
    state = motion()
    state[0, 0] = np.nan
    path = write_recording(tmp_path / "episode_0.hdf5", state=state, cameras=("cam_high",), task=None).path
    problem = problem_of(path)
    assert "\n" not in problem
    assert all(text in problem for text in ("no task text", "is missing", "not finite"))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"size": (32, 64)}, "images cam_high 32x64 px"),
        ({"fps": 30}, "frame rate 30 fps, expected 50 fps as in most others"),
    ],
)
def test_a_recording_unlike_the_others_is_the_bad_one(tmp_path, write_recording, odd, message):
    paths = [write_recording(tmp_path / f"episode_{i}.hdf5", **(odd if i == 0 else {})).path for i in range(3)]
    reports = compare_episodes([check_episode(p, RawOptions(), spec.CAMERAS) for p in paths])
    assert [r.problem is None for r in reports] == [False, True, True]
    assert message in reports[0].problem
