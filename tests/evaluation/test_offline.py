import contextlib
import dataclasses
import json
import shutil

import cv2
import h5py
import numpy as np
import pytest

from openpi.policies import recorder
from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy
from realman import spec
from realman.data.raw import RawOptions
from realman.errors import DatasetError
from realman.errors import EpisodeError
from realman.errors import ServerError
from realman.evaluation import metrics
from realman.evaluation import offline_command
from realman.evaluation import open_loop

FRAMES = 60
METADATA = {
    "robot": "realman_rm65_dual",
    "dim_names": list(spec.DIM_NAMES),
    "cameras": ["cam_high", "cam_right_wrist"],
    "action_chunk": 25,
    "action_horizon": 50,
    "fps": 50,
    "config": "debug_realman",
}


def joints(frames: int = FRAMES) -> np.ndarray:
    """Smooth motion of all 14 numbers, within the arms' range."""
    time_s = np.arange(frames)[:, None] / 50
    motion = 0.5 * np.sin(2 * time_s + np.arange(14))
    motion[:, list(spec.GRIPPER_DIMS)] = 0.5 + 0.4 * np.sin(3 * time_s)
    return motion.astype(np.float32)


def write_recording(path, *, action: np.ndarray | None = None) -> None:
    """An ALOHA-style episode whose frame `t` has the gray level `t`, and whose action leads the state by three frames."""
    state = joints(FRAMES + 3)
    with h5py.File(path, "w") as file:
        file.attrs["fps"] = 50
        file.attrs["language_instruction"] = "put the cube on the tray"
        file["observations/qpos"] = state[:FRAMES]
        file["action"] = state[3:] if action is None else action
        for camera in spec.CAMERAS:
            buffers = [cv2.imencode(".jpg", np.full((48, 64, 3), t, np.uint8))[1] for t in range(FRAMES)]
            rows = file.create_dataset(f"observations/images/{camera}", (FRAMES,), h5py.vlen_dtype(np.uint8))
            for t, buffer in enumerate(buffers):
                rows[t] = buffer


class Oracle(base_policy.BasePolicy):
    """Knows the recording: answers with its actions plus a constant error, finds its frame by the image."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.asked: list[tuple[int, str]] = []

    def infer(self, obs: dict) -> dict:
        frame = int(obs["images"]["cam_high"].max())
        self.asked.append((frame, obs["prompt"]))
        actions = joints(FRAMES + 3 + 50)[3 + frame : 3 + frame + 50]
        return {"actions": actions + self.error}


@contextlib.contextmanager
def serving(policy, **metadata):
    with serve_in_thread(WebsocketPolicyServer(policy, "127.0.0.1", 0, {**METADATA, **metadata})) as server:
        yield server


@pytest.fixture(scope="module")
def recording_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "episode_0.hdf5"
    write_recording(path)
    return path


@pytest.fixture(scope="module")
def example():
    """The command `realman offline`."""
    return offline_command


def run_example(example, policy, tmp_path, data, **flags) -> dict:
    with serving(policy) as server:
        args = example.Args(data=data, port=server.port, out_dir=tmp_path, **flags)
        assert example.main(args) == 0
    return json.loads((tmp_path / "episode_0.json").read_text())


def test_the_policy_is_asked_at_every_chunk_with_that_frame_and_the_recorded_task(example, recording_path, tmp_path):
    policy = Oracle()
    run_example(example, policy, tmp_path, recording_path)
    assert policy.asked == [
        (0, "put the cube on the tray"),
        (25, "put the cube on the tray"),
        (50, "put the cube on the tray"),
    ]


def test_a_perfect_policy_has_no_error_and_the_baseline_is_holding_the_last_seen_state(
    example, recording_path, tmp_path
):
    report = run_example(example, Oracle(), tmp_path, recording_path)
    motion = joints(FRAMES + 3).astype(np.float64)
    held = np.repeat(motion[[0, 25, 50]], 25, axis=0)[:FRAMES]
    expected = np.abs(held - motion[3:]).mean(axis=0)
    assert report["overall_ratio"] == pytest.approx(0, abs=1e-6)
    for dim, row in enumerate(report["per_dim"]):
        scale = np.rad2deg(1) if dim in spec.JOINT_DIMS else 1
        assert row["mae"] == pytest.approx(0, abs=1e-5)
        assert row["baseline_mae"] == pytest.approx(expected[dim] * scale, rel=1e-5)
    assert [c["steps"] for c in report["chunks"]] == [25, 25, 10]
    assert np.array(report["predicted"]).shape == (FRAMES, 14)


def test_errors_are_in_degrees_and_gripper_fractions(example, recording_path, tmp_path, capsys):
    report = run_example(example, Oracle(error=0.01), tmp_path, recording_path)
    assert report["joints"]["mae"] == pytest.approx(np.rad2deg(0.01), rel=1e-4)
    assert report["joints"]["unit"] == "deg"
    assert report["grippers"]["mae"] == pytest.approx(0.01, rel=1e-4)
    assert report["per_dim"][0]["name"] == "right_waist"
    assert report["per_dim"][0]["ratio"] == pytest.approx(
        report["per_dim"][0]["mae"] / report["per_dim"][0]["baseline_mae"]
    )
    assert report["server"] == {"config": "debug_realman"}
    assert report["round_trip_ms"]["p50"] > 0
    printed = capsys.readouterr().out
    assert "left_wrist_rotate" in printed
    assert "0.57" in printed
    assert (tmp_path / "episode_0.png").stat().st_size > 10_000


def test_a_prompt_of_ones_own_and_a_shorter_chunk_are_used(example, recording_path, tmp_path):
    policy = Oracle()
    run_example(example, policy, tmp_path, recording_path, prompt="something else", action_chunk=40)
    assert policy.asked == [(0, "something else"), (40, "something else")]


def test_a_folder_is_read_in_natural_order_and_its_end_is_known(recording_path):
    folder = recording_path.parent
    assert len(open_loop.find_recordings(folder, (0,), RawOptions())) == 1
    with pytest.raises(EpisodeError, match="no episode 1, found 1 counted from 0"):
        open_loop.find_recordings(folder, (0, 1), RawOptions())


def test_missing_data_is_reported_plainly(tmp_path):
    with pytest.raises(EpisodeError, match="no such file or folder"):
        open_loop.find_recordings(tmp_path / "nowhere", (0,), RawOptions())


def test_a_recording_with_holes_is_refused_before_the_server_sees_it(tmp_path):
    action = joints()
    action[7, 3] = np.nan
    write_recording(tmp_path / "episode_0.hdf5", action=action)
    source = open_loop.raw_recording(tmp_path / "episode_0.hdf5", RawOptions())
    with pytest.raises(EpisodeError, match=r"'action' is not finite at frame 7, right_forearm_roll \[3\]"), source:
        pass


def test_a_server_at_another_rate_is_refused_and_nothing_is_written(example, recording_path, tmp_path):
    with serving(Oracle(), fps=30) as server, pytest.raises(ServerError, match="'fps' is 30, this side runs at 50"):
        example.main(example.Args(data=recording_path, port=server.port, out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_episode_of_a_dataset_is_the_same_recording(golden_dir):
    root = golden_dir / "lerobot_v21_image"
    (source,) = open_loop.find_recordings(root, (1,), RawOptions())
    with source as recording:
        info = json.loads((root / "meta/info.json").read_text())
        lengths = [json.loads(line)["length"] for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
        assert recording.fps == info["fps"]
        assert recording.state.shape == recording.action.shape == (lengths[1], 14)
        # These datasets hold sin(0.1 t + 0.3 j + e + k): k = 0 for the state, 1 for the action.
        t, j = np.arange(lengths[1])[:, None], np.arange(14)
        np.testing.assert_allclose(recording.state, np.sin(0.1 * t + 0.3 * j + 1), atol=1e-6)
        np.testing.assert_allclose(recording.action, np.sin(0.1 * t + 0.3 * j + 2), atol=1e-6)
        i, y, x = 2, np.arange(48)[:, None], np.arange(64)
        red = np.floor(127.5 + 127 * np.sin(0.1 * y + 0.07 * x + 0.2 * 3 + i + 1))
        image = recording.image(recording.cameras[i], 3)
        assert image.shape == (48, 64, 3)
        assert np.abs(image[..., 0] - red).max() <= 1


def test_an_episode_with_the_left_arm_first_comes_right_first_and_mixed_arms_are_refused(golden_dir, tmp_path):
    root = golden_dir / "lerobot_v21_image"
    changed = shutil.copytree(root, tmp_path / "left_first")
    info = json.loads((root / "meta/info.json").read_text())
    names = [f"{side}_{i}" for side in ("left", "right") for i in range(7)]
    for key in ("observation.state", "action"):
        info["features"][key]["names"] = names
    (changed / "meta/info.json").write_text(json.dumps(info))
    (one,), (other,) = (open_loop.find_recordings(folder, (1,), RawOptions()) for folder in (root, changed))
    with one as as_stored, other as recording:
        np.testing.assert_array_equal(recording.state, np.roll(as_stored.state, 7, axis=1))
        np.testing.assert_array_equal(recording.action, np.roll(as_stored.action, 7, axis=1))
    info["features"]["action"]["names"] = names[::2] + names[1::2]
    (changed / "meta/info.json").write_text(json.dumps(info))
    (mixed,) = open_loop.find_recordings(changed, (1,), RawOptions())
    with pytest.raises(DatasetError, match="mix the arms"), mixed:
        pass


def test_a_number_that_never_moves_has_no_ratio():
    still = np.zeros((10, 14))
    errors = metrics.action_errors(still + 0.1, still, still)
    assert errors.overall_ratio is None
    assert {row["ratio"] for row in errors.per_dim()} == {None}


@pytest.fixture(scope="module")
def records(example, recording_path, tmp_path_factory):
    """What a server wrote down of three requests."""
    folder = tmp_path_factory.mktemp("work") / "policy_records"
    metadata = {**METADATA, "protocol": {"features": []}}

    class Described(Oracle):
        metadata = property(lambda self: metadata)

    recording = recorder.PolicyRecorder(Described(), folder)
    with contextlib.closing(recording):
        run_example(example, recording, folder.parent, recording_path)
    return folder


def test_recorded_requests_are_asked_again_and_the_replies_compared(example, records, tmp_path, capsys):
    policy = Oracle(error=0.01)
    with serving(policy) as server:
        assert example.main(example.Args(data=records, port=server.port, out_dir=tmp_path)) == 0
    assert policy.asked == [(frame, "put the cube on the tray") for frame in (0, 25, 50)]
    report = json.loads((tmp_path / "policy_records_replies.json").read_text())
    assert report["joints"]["mae"] == pytest.approx(np.rad2deg(0.01), rel=1e-4)
    assert report["per_dim"][3]["name"] == "right_forearm_roll"
    assert report["grippers"]["max_error"] == pytest.approx(0.01, rel=1e-4)
    assert (report["frames"], [chunk["frame"] for chunk in report["chunks"]]) == (75, [0, 25, 50])
    np.testing.assert_allclose(report["recorded"][25:50], joints(FRAMES + 53)[28:53], atol=1e-6)
    assert (tmp_path / "policy_records_replies.png").stat().st_size > 10_000
    assert "all joints" in capsys.readouterr().out


def test_the_same_policy_gives_the_same_replies(example, records, tmp_path):
    with serving(Oracle()) as server:
        example.main(example.Args(data=records, port=server.port, out_dir=tmp_path))
    assert json.loads((tmp_path / "policy_records_replies.json").read_text())["overall_ratio"] == pytest.approx(
        0, abs=1e-6
    )


def test_records_that_cannot_be_replayed_are_reported_in_one_line(example, records, tmp_path):
    folder = shutil.copytree(records, tmp_path / "records")
    first = open_loop.find_records(folder)[0]
    with serving(Oracle(), cameras=["cam_low", "cam_high"]) as server:
        args = example.Args(data=folder, port=server.port, out_dir=tmp_path / "out")
        with pytest.raises(DatasetError, match="but --seams needs an episode"):
            example.main(dataclasses.replace(args, seams=True))
        with pytest.raises(ServerError, match="'cameras' asks for cam_low"):
            example.main(args)
    with serving(Oracle()) as server:
        args = example.Args(data=folder, port=server.port, out_dir=tmp_path / "out")
        first.write_bytes(first.read_bytes()[:1000])
        with pytest.raises(DatasetError, match=r"step_0\.npz: not a complete record"):
            example.main(args)
        np.savez(first, **{"time_s": 1.0, "inputs/x": np.zeros(3), "outputs/actions": np.zeros((50, 14))})
        with pytest.raises(DatasetError, match=r"step_0\.npz: found x, actions, expected a request of this robot"):
            example.main(args)
        (folder / "metadata.json").unlink()
        with pytest.raises(DatasetError, match=r"metadata\.json: found no control rate 'fps'"):
            example.main(args)
    assert not (tmp_path / "out").exists()
