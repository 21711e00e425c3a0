"""Converting whole folders: the dataset equals the recordings, whatever the options and the number of workers."""

import io
import json
import sys

import cv2
import h5py
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pyarrow.parquet as pq
import pytest

from realman import cli
from realman import spec
from realman.data import convert
from realman.data.dataset import layout
from realman.data.dataset.video import read_frames
from realman.data.raw import RawOptions
from realman.data.raw import find_episodes
from realman.data.raw import open_episode


def run(raw_dir, root, **options):
    """Convert in this process and return the dataset's folder."""
    args = convert.Args(raw_dir=raw_dir, root=root, **{"workers": 1, **options})
    assert convert.main(args) == 0
    return args.target


def content(root):
    """Every file of a folder and its bytes."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def decode(cell):
    """An image cell as an ordinary reader sees it: RGB."""
    return cv2.imdecode(np.frombuffer(cell["bytes"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_the_dataset_equals_the_recordings(tmp_path, tiny_recordings):
    root = run(tiny_recordings, tmp_path)
    assert root == tmp_path / "realman" / "dual_arm"
    tasks = [line["task"] for line in layout.read_json_lines(root / layout.TASKS)]
    first = 0
    for index, path in enumerate(find_episodes(tiny_recordings)):
        table = pq.read_table(root / layout.data_path(index))
        with open_episode(path) as episode:
            frames = np.arange(episode.num_frames)
            columns = {
                spec.STATE_KEY: episode.state,
                spec.ACTION_KEY: episode.action,
                spec.VELOCITY_KEY: episode.velocity,
                spec.EFFORT_KEY: episode.effort,
                "timestamp": (frames / 50).astype(np.float32),
                "frame_index": frames,
                "episode_index": np.full_like(frames, index),
                "index": first + frames,
            }
            for key, expected in columns.items():
                np.testing.assert_array_equal(np.array(table[key].to_pylist(), expected.dtype), expected, err_msg=key)
            assert {tasks[i] for i in table["task_index"].to_pylist()} == {episode.task}
            for camera in spec.CAMERAS:
                for t, cell in enumerate(table[spec.image_key(camera)].to_pylist()):
                    assert cell == {"bytes": episode.encoded_image(camera, t), "path": f"frame_{t:06d}.jpg"}
                    np.testing.assert_array_equal(decode(cell), episode.image(camera, t))
            first += episode.num_frames


def test_the_metadata_tell_the_same_story(tmp_path, tiny_recordings):
    root = run(tiny_recordings, tmp_path, robot_type="my_robot")
    info = json.loads((root / layout.INFO).read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 28, 2)
    assert (info["robot_type"], info["fps"], info["splits"]) == ("my_robot", 50, {"train": "0:3"})
    episodes = layout.read_json_lines(root / layout.EPISODES)
    assert [line["length"] for line in episodes] == [12, 9, 7]
    assert episodes[1] == {"episode_index": 1, "tasks": ["hand over the cube"], "length": 9}
    stats = layout.read_json_lines(root / layout.EPISODES_STATS)
    assert [line["episode_index"] for line in stats] == [0, 1, 2]
    for line, episode in zip(stats, episodes, strict=True):
        assert list(line["stats"]) == list(info["features"])
        assert all(s["count"] == [episode["length"]] for s in line["stats"].values())
    sources = layout.read_json_lines(root / layout.SOURCES)
    assert [line["source"] for line in sources] == ["episode_0.hdf5", "episode_1.hdf5", "episode_2.hdf5"]


def test_reading_one_frame_reads_no_neighbours(tmp_path, tiny_recordings):
    root = run(tiny_recordings, tmp_path)
    metadata = pq.read_metadata(root / layout.data_path(0))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1] * 12


@pytest.mark.parametrize("options", [{}, {"mode": "video"}, {"mode": "video", "video_codec": "h264"}])
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, tiny_recordings, options):
    one = run(tiny_recordings, tmp_path / "one", workers=1, **options)
    two = run(tiny_recordings, tmp_path / "two", workers=2, **options)
    assert content(one) == content(two)


def test_raw_frames_become_lossless_png(tmp_path, write_recording):
    truth = write_recording(tmp_path / "raw" / "episode_0.hdf5", form="raw", num_frames=3)
    root = run(tmp_path / "raw", tmp_path / "out")
    table = pq.read_table(root / layout.data_path(0))
    for camera, frames in truth.frames.items():
        cells = table[spec.image_key(camera)].to_pylist()
        assert [cell["path"] for cell in cells] == [f"frame_{t:06d}.png" for t in range(3)]
        np.testing.assert_array_equal(np.stack([decode(cell) for cell in cells]), frames)


def test_jpegs_of_swapped_colors_are_fixed_without_loss(tmp_path, write_recording):
    truth = write_recording(tmp_path / "raw" / "episode_0.hdf5", num_frames=2)
    root = run(tmp_path / "raw", tmp_path / "out", color="bgr")
    cell = pq.read_table(root / layout.data_path(0))[spec.image_key("cam_high")][1].as_py()
    assert cell["path"].endswith(".png")
    np.testing.assert_array_equal(decode(cell), truth.frames["cam_high"][1][..., ::-1])


def test_video_mode_shows_the_recorded_frames(tmp_path, tiny_recordings):
    root = run(tiny_recordings, tmp_path, mode="video", video_codec="h264")
    info = json.loads((root / layout.INFO).read_text())
    assert (info["total_videos"], info["video_path"]) == (12, layout.VIDEO_PATH)
    key = spec.image_key("cam_low")
    assert info["features"][key]["info"]["video.codec"] == "h264"
    assert key not in pq.read_schema(root / layout.data_path(0)).names
    with open_episode(find_episodes(tiny_recordings)[1]) as episode:
        recorded = np.stack([episode.image("cam_low", t) for t in range(9)])
    shown = np.stack(list(read_frames(root / layout.video_path(1, key), set(range(9)))))
    # Brightness only: the pixel format keeps one color for 2x2 pixels, and these images are nothing but color.
    luma = np.array([0.299, 0.587, 0.114])
    errors = np.abs((shown @ luma)[:, None] - (recorded @ luma)[None]).mean((2, 3))
    assert errors.argmin(1).tolist() == list(range(9))
    assert errors.diagonal().max() < 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=3),
    cameras=st.lists(st.sampled_from([*spec.CAMERAS, "cam_extra"]), max_size=3, unique=True),
    form=st.sampled_from(["jpeg_padded", "jpeg_variable", "jpeg_strings", "raw"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    optional=st.booleans(),
    fps=st.sampled_from([10, 30, 50]),
    order=st.sampled_from(["right_left", "left_right"]),
)
def test_any_recordings_come_back_as_they_were(
    tmp_path_factory, write_recording, lengths, cameras, form, size, optional, fps, order
):
    folder = tmp_path_factory.mktemp("any")
    cameras = cameras or ["cam_high"]
    common = {"cameras": cameras, "form": form, "size": size, "optional": optional, "fps": fps}
    truths = [
        write_recording(folder / "raw" / f"episode_{i}.hdf5", num_frames=n, seed=i, **common)
        for i, n in enumerate(lengths)
    ]
    # An image of one pixel may well be black.
    accept = ("black", "frozen")
    root = run(folder / "raw", folder / "out", cameras=tuple(cameras), raw_arm_order=order, accept=accept)
    info = json.loads((root / layout.INFO).read_text())
    assert (info["fps"], info["total_frames"]) == (fps, sum(lengths))
    assert (spec.EFFORT_KEY in info["features"]) == optional
    for i, truth in enumerate(truths):
        table = pq.read_table(root / layout.data_path(i))
        state = np.roll(truth.state, 7, axis=1) if order == "left_right" else truth.state
        np.testing.assert_array_equal(np.array(table[spec.STATE_KEY].to_pylist(), np.float32), state.astype(np.float32))
        for camera in cameras:
            images = [decode(cell) for cell in table[spec.image_key(camera)].to_pylist()]
            np.testing.assert_array_equal(np.stack(images), truth.frames[camera])


def test_a_task_file_names_the_task_of_each_recording(tmp_path, write_recording):
    for i in range(2):
        write_recording(tmp_path / "raw" / f"episode_{i}.hdf5", task=None, num_frames=2)
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps({"episode_0": "fold", "episode_1.hdf5": "unfold"}))
    root = run(tmp_path / "raw", tmp_path / "out", task_file=tasks)
    assert [line["tasks"] for line in layout.read_json_lines(root / layout.EPISODES)] == [["fold"], ["unfold"]]


def test_chosen_episodes_are_those_of_these_numbers(tmp_path, tiny_recordings):
    root = run(tiny_recordings, tmp_path, episodes=(2, 0))
    assert [line["length"] for line in layout.read_json_lines(root / layout.EPISODES)] == [12, 7]


def test_a_dry_run_checks_and_writes_nothing(tmp_path, tiny_recordings):
    args = convert.Args(raw_dir=tiny_recordings, root=tmp_path / "out", dry_run=True, workers=1)
    assert convert.main(args) == 0
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_datasets_path_and_nothing_else_to_stdout(
    tmp_path, tiny_recordings, monkeypatch, capsys
):
    monkeypatch.setattr(
        sys, "argv", ["convert", "--data", str(tiny_recordings), "--workers", "1", "--gripper-range", "0:1"]
    )
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.run(convert.main, convert.Args)
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'realman' / 'dual_arm'}\n"


def test_a_rate_that_nobody_stated_is_assumed_aloud(tmp_path, write_recording, caplog):
    write_recording(tmp_path / "raw" / "episode_0.hdf5", fps=None, cameras=(*spec.CAMERAS, "cam_extra"))
    run(tmp_path / "raw", tmp_path / "out")
    assert "50 frames per second assumed. Give another with --fps" in caplog.text
    assert "not converted: cam_extra" in caplog.text


def test_numbers_are_converted_with_the_options(tmp_path, write_recording):
    state = np.full((4, 14), 0.5)
    state[:, list(spec.JOINT_DIMS)] = 45.0
    state[:, list(spec.GRIPPER_DIMS)] = 250.0
    path = write_recording(tmp_path / "raw" / "episode_0.hdf5", num_frames=4, state=state, action=state).path
    with h5py.File(path, "r+") as file:
        file["observations/qvel"][:] = 90.0
    root = run(tmp_path / "raw", tmp_path / "out", angle_unit="deg", gripper_range="1000:0")
    row = pq.read_table(root / layout.data_path(0)).slice(0, 1).to_pylist()[0]
    assert row[spec.STATE_KEY][0] == pytest.approx(np.pi / 4)
    assert row[spec.ACTION_KEY][13] == pytest.approx(0.75)
    assert row[spec.VELOCITY_KEY][0] == pytest.approx(np.pi / 2)
    with open_episode(path, RawOptions(angle_unit="deg", gripper_range=(1000, 0))) as episode:
        assert episode.state[0].tolist() == row[spec.STATE_KEY]


def test_images_open_in_pillow_too(tmp_path, tiny_recordings):
    image_module = pytest.importorskip("PIL.Image")
    root = run(tiny_recordings, tmp_path)
    cell = pq.read_table(root / layout.data_path(0))[spec.image_key("cam_high")][0].as_py()
    np.testing.assert_array_equal(np.asarray(image_module.open(io.BytesIO(cell["bytes"]))), decode(cell))
