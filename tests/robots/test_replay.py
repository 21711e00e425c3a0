"""A recording, or the log of a run, as a robot."""

import numpy as np
import pytest

from realman.errors import EpisodeError
from realman.errors import NotConnectedError
from realman.errors import RejectedError
from realman.errors import SiteError
from realman.robots.replay import ReplayRobot
from realman.robots.robot import MeasuringRobot
from realman.robots.robot import connected
from realman.runtime import chunks
from realman.runtime import control
from realman.runtime.client import Prediction
from realman.runtime.safety import Limits
from realman.runtime.safety import SafetySettings
from realman.station.site_config import ReplaySettings
from realman.station.site_config import Site
from realman.station.site_config import open_robot

LIMITS = Limits.per_tick(SafetySettings(max_joint_speed_deg_s=225, max_joint_acceleration_deg_s2=1e6), fps=50)


class Hold:
    """A policy that holds the arms where they are."""

    action_chunk = 4

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, dict]] = []

    def infer(self, state, images, prompt=None) -> Prediction:
        self.seen.append((state, images))
        return Prediction(np.tile(state, (8, 1)), 0.0, None)


def play(robot: ReplayRobot, steps: int) -> tuple[Hold, control.RunRecord]:
    policy, record = Hold(), control.RunRecord()
    with connected(robot):
        control.run(robot, chunks.SyncPlayer(policy, None), LIMITS, record, max_steps=steps, measure=robot.measure)
    return policy, record


def test_a_recording_is_seen_and_measured_frame_by_frame(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5", num_frames=12)
    robot = ReplayRobot(truth.path)
    assert isinstance(robot, MeasuringRobot)
    policy, record = play(robot, 10)
    for t, (state, images) in zip((0, 4, 8), policy.seen, strict=True):
        np.testing.assert_allclose(state, truth.state[t], atol=1e-6)
        np.testing.assert_array_equal(images["cam_high"], truth.frames["cam_high"][t])
    np.testing.assert_allclose(record.states, truth.state[:10], atol=1e-6)
    np.testing.assert_array_equal(robot.taken, record.sent)


def test_every_run_leaves_a_log_that_can_be_replayed(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5", num_frames=12)
    _, record = play(ReplayRobot(truth.path), 12)
    np.savez_compressed(tmp_path / "run.npz", **record.arrays())
    _, again = play(ReplayRobot(tmp_path / "run.npz"), 12)
    np.testing.assert_allclose(again.states, record.states)
    np.testing.assert_allclose(again.sent, record.sent)


def test_after_the_last_frame_time_stands_still(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5", num_frames=6)
    _, record = play(ReplayRobot(truth.path), 9)
    np.testing.assert_allclose(record.states[5:], np.tile(truth.state[5], (4, 1)), atol=1e-6)


def test_a_stopped_or_closed_replay_takes_no_target(tmp_path, write_recording):
    robot = ReplayRobot(write_recording(tmp_path / "episode_0.hdf5").path)
    with pytest.raises(NotConnectedError):
        robot.observe()
    robot.connect()
    robot.stop()
    with pytest.raises(RejectedError, match="stopped"):
        robot.send(np.zeros(14))
    robot.disconnect()
    robot.disconnect()


@pytest.mark.parametrize("name", ["missing.npz", "other.npz", "missing.hdf5"])
def test_what_cannot_be_replayed_is_reported_in_one_line(tmp_path, name):
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(EpisodeError, match=name):
        ReplayRobot(tmp_path / name).connect()


def test_a_site_that_replays_says_what(tmp_path):
    with pytest.raises(SiteError, match="robot = 'replay' has nothing to play"):
        open_robot(Site(robot="replay"))
    robot = open_robot(Site(robot="replay", replay=ReplaySettings(str(tmp_path / "run.npz"), 30)))
    assert robot.fps == 30
