"""The LeRobot reader against datasets that LeRobot itself wrote, and against damaged ones."""

import concurrent.futures
import json
import pathlib
import re
import shutil

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi.shared import errors
from openpi.training.lerobot import columns as lerobot_columns
from openpi.training.lerobot import encoded_images
from openpi.training.lerobot.dataset import LeRobotDataset

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
CAMERAS = tuple(f"observation.images.{name}" for name in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"))
LENGTHS = (12, 9, 7)
TASKS = ("pick up the cube", "hand over the cube", "pick up the cube")
VECTORS = ("observation.state", "action", "observation.velocity", "observation.effort")


def vector(kind: int, episode: int, t: np.ndarray | int) -> np.ndarray:
    t = np.atleast_1d(t)[:, None]
    return np.sin(0.1 * t + 0.3 * np.arange(14) + episode + kind).astype(np.float32)


def image(camera: int, episode: int, t: int) -> np.ndarray:
    y, x, c = np.meshgrid(np.arange(48), np.arange(64), np.arange(3), indexing="ij")
    value = np.floor(127.5 + 127 * np.sin(0.1 * y * (c + 1) + 0.07 * x + 0.2 * t + camera + episode))
    return value.astype(np.uint8).transpose(2, 0, 1)


def open_golden(mode: str, **kwargs) -> LeRobotDataset:
    return LeRobotDataset("realman/golden", root=GOLDEN / f"lerobot_v21_{mode}", **kwargs)


@pytest.fixture
def damaged(tmp_path: pathlib.Path) -> pathlib.Path:
    """A writable copy of the image dataset."""
    return pathlib.Path(shutil.copytree(GOLDEN / "lerobot_v21_image", tmp_path / "dataset"))


@pytest.mark.parametrize("mode", ["image", "video"])
def test_every_number_of_the_golden_datasets_is_read_exactly(mode):
    horizon = 5
    dataset = open_golden(mode, action_horizon=horizon, image_keys=())
    assert len(dataset) == sum(LENGTHS)
    index = 0
    for episode, length in enumerate(LENGTHS):
        for t in range(length):
            item = dataset[index]
            for kind, key in enumerate(VECTORS):
                wanted = vector(kind, episode, t)[0]
                if key == "action":
                    wanted = vector(kind, episode, np.minimum(t + np.arange(horizon), length - 1))
                assert item[key].dtype == np.float32
                np.testing.assert_allclose(item[key], wanted, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(item["action_is_pad"], t + np.arange(horizon) >= length)
            assert (item["index"], item["episode_index"], item["frame_index"]) == (index, episode, t)
            assert item["timestamp"] == np.float32(t / 50)
            assert item["task"] == TASKS[episode]
            assert not set(CAMERAS) & item.keys()
            index += 1


def test_png_images_of_the_golden_dataset_are_read_exactly():
    dataset = open_golden("image")
    for index, (episode, t) in {0: (0, 0), 11: (0, 11), 12: (1, 0), 17: (1, 5), 27: (2, 6)}.items():
        item = dataset[index]
        for camera, key in enumerate(CAMERAS):
            np.testing.assert_array_equal(item[key], image(camera, episode, t))


def test_video_frames_are_found_in_any_order():
    """Lossy video: each frame must be close to its own formula and closer to it than to its neighbors'."""
    dataset = open_golden("video", image_keys=CAMERAS[:2])
    starts = np.cumsum((0, *LENGTHS))
    for index in (27, 0, 13, 12, 11, 5, 20, 19):
        episode = int(np.searchsorted(starts, index, side="right")) - 1
        t = index - starts[episode]
        item = dataset[index]
        assert CAMERAS[2] not in item
        for camera in range(2):
            got = item[CAMERAS[camera]].astype(int)
            error = [np.abs(got - image(camera, episode, t + shift)).mean() for shift in (-1, 0, 1)]
            assert error[1] < 12
            assert error[1] < min(error[0], error[2])


def test_video_frames_in_order_are_those_of_any_order():
    shuffled, forward = open_golden("video", image_keys=CAMERAS[:1]), open_golden("video", image_keys=CAMERAS[:1])
    order = [*range(27, -1, -1), 3, 5, 4, 4, 11, 0]
    backward = {i: shuffled[i][CAMERAS[0]] for i in order}
    for i in (*range(28), 0, 2, 4, 5):
        np.testing.assert_array_equal(forward[i][CAMERAS[0]], backward[i])


def test_metadata_names_rate_tasks_episodes_and_cameras():
    meta = open_golden("image", image_keys=()).meta
    assert meta.fps == 50
    assert meta.total_frames == sum(LENGTHS)
    assert [episode.length for episode in meta.episodes] == list(LENGTHS)
    assert meta.tasks == {0: TASKS[0], 1: TASKS[1]}
    assert meta.camera_keys == CAMERAS
    assert meta.features["observation.state"]["shape"] == [14]


@pytest.mark.parametrize("mode", ["image", "video"])
def test_many_threads_read_the_same_items_as_one(mode):
    dataset = open_golden(mode, image_keys=CAMERAS[:1])
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    alone = [dataset[i][CAMERAS[0]] for i in order]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: dataset[i][CAMERAS[0]], order))
    np.testing.assert_array_equal(alone, together)


def test_small_row_groups_read_the_same_images(damaged):
    """A writer may put every frame into its own row group; frames must be found by row, not by group."""
    path = damaged / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    dataset = LeRobotDataset("x", root=damaged, image_keys=CAMERAS[:1])
    for t in range(LENGTHS[1]):
        np.testing.assert_array_equal(dataset[LENGTHS[0] + t][CAMERAS[0]], image(0, 1, t))


def test_default_root_is_the_lerobot_home(damaged, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(damaged.parent))
    assert len(LeRobotDataset("dataset", image_keys=())) == sum(LENGTHS)


def test_an_index_outside_the_dataset_is_refused():
    with pytest.raises(IndexError, match=r"frame 28 is outside 0\.\.27"):
        open_golden("image", image_keys=())[28]


def test_a_missing_dataset_names_its_folder_and_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    with pytest.raises(errors.MissingFileError) as info:
        LeRobotDataset("realman/none")
    assert str(tmp_path / "realman/none") in str(info.value)
    assert "make convert DATA=<recordings> REPO_ID=realman/none" in str(info.value)


def test_a_newer_dataset_version_is_refused_with_a_tool_that_converts_it(damaged):
    path = damaged / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v3.0"}))
    expected = r"found codebase_version 'v3.0', expected v2.0 or v2.1. Convert it to v2.1 with any4lerobot"
    with pytest.raises(errors.DataError, match=expected):
        LeRobotDataset("x", root=damaged)


def test_version_2_0_reads_like_2_1(damaged):
    (damaged / "meta/episodes_stats.jsonl").unlink()  # 2.0 has one stats.json, which nothing here reads
    path = damaged / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v2.0"}))
    older, newer = LeRobotDataset("x", root=damaged), open_golden("image")
    for i in (0, 12, 27):
        for key, value in newer[i].items():
            np.testing.assert_array_equal(older[i][key], value)


def test_only_the_columns_asked_for_are_held():
    dataset = open_golden("image", image_keys=(), column_keys=["observation.state"])
    assert "observation.effort" not in dataset.columns
    assert {"observation.state", "action", "task_index"} <= dataset.columns.keys()


def change_info(root, **changes):
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_list_of_episodes_that_is_not_whole_is_named_and_the_remedy_works(damaged):
    path = damaged / "meta/episodes.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(errors.DataError, match=r"episodes.jsonl: found total_episodes \d, expected \d") as info:
        LeRobotDataset("x", root=damaged)
    # The message says what to write, for somebody who has removed the line on purpose.
    numbers = re.findall(r'"(\w+)": (\d+)', str(info.value))
    assert [name for name, _ in numbers] == ["total_episodes", "total_frames"]
    change_info(damaged, **{name: int(number) for name, number in numbers})
    assert len(LeRobotDataset("x", root=damaged)) == 21


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tasks", '{"task_index": 0, "task": null}', "task_index 0 has the task None, expected a text"),
        ("tasks", '{"task_index": 0, "task": 5}', "task_index 0 has the task 5, expected a text"),
        ("tasks", '{"task_index": 1, "task": "other"}', "task_index 1 has two texts"),
        ("tasks", '{"task": "other"}', "no 'task_index' among"),
        ("tasks", "[1]", "line 3: found list, expected a JSON object"),
        ("episodes", '{"episode_index": 0, "length": 3}', "episode_index 0 has two lengths, 12 and 3"),
        ("episodes", '{"episode_index": 3, "length": null}', "found 'length' null, expected a whole number"),
    ],
)
def test_lines_that_contradict_or_say_nothing_are_refused(damaged, file, text, message):
    path = damaged / f"meta/{file}.jsonl"
    kept = "" if "task_index 0" in message else path.read_text()
    path.write_text(f"{kept}{text}\n")
    with pytest.raises(errors.DataError, match=re.escape(message)):
        LeRobotDataset("x", root=damaged)


def test_tasks_keep_their_index_and_episodes_their_place_whatever_the_order_of_lines(damaged):
    tasks, episodes = damaged / "meta/tasks.jsonl", damaged / "meta/episodes.jsonl"
    lines = tasks.read_text().splitlines()
    tasks.write_text("\n".join([*reversed(lines), lines[0]]))
    episodes.write_text("\n".join(reversed(episodes.read_text().splitlines())))
    for i, item in enumerate(map(LeRobotDataset("x", root=damaged, image_keys=()).__getitem__, range(28))):
        assert (item["index"], item["task"]) == (i, TASKS[item["episode_index"]])


@pytest.mark.parametrize("fps", [15, 30, 50])
def test_long_episodes_are_read_at_the_resolution_of_their_timestamps(tmp_path, fps):
    def check(times: np.ndarray) -> None:
        lerobot_columns.check_timestamps(times, fps, tmp_path)

    frames = np.arange(0, 5 * 3600 * fps)
    check((frames / fps).astype(np.float32))
    check(frames / fps)
    check((frames / fps).astype(np.float32).astype(np.float64))
    with pytest.raises(errors.DataError, match="frame 1 comes"):
        check((frames / (fps + 1)).astype(np.float32))
    late = (frames / fps).astype(np.float32)
    late[-1] += 0.5 / fps
    with pytest.raises(errors.DataError, match=f"frame {len(frames) - 1} comes"):
        check(late)
    late[1000] = np.nan
    with pytest.raises(errors.DataError, match="frame 1000 comes nan s after"):
        check(late)


def test_a_column_that_a_file_lacks_is_named(damaged):
    path = damaged / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    with pytest.raises(errors.DataError, match=r"episode_000001.parquet: columns \['action'\] are missing, found"):
        LeRobotDataset("x", root=damaged)


def test_a_missing_episode_file_is_named(damaged):
    (damaged / "data/chunk-000/episode_000001.parquet").unlink()
    with pytest.raises(errors.MissingFileError, match=r"episode_000001.parquet: episode 1 is missing"):
        LeRobotDataset("x", root=damaged)


def test_a_file_that_is_not_parquet_is_named(damaged):
    (damaged / "data/chunk-000/episode_000001.parquet").write_bytes(b"not a parquet file at all")
    with pytest.raises(errors.DataError, match=r"episode_000001.parquet: episode 1 cannot be read"):
        LeRobotDataset("x", root=damaged)


def test_a_flipped_byte_anywhere_in_a_table_is_refused_or_read(damaged):
    path = damaged / "data/chunk-000/episode_000001.parquet"
    whole = path.read_bytes()
    refused = set()
    # Structure is at the end, and at the beginning of each page.
    offsets = {*range(4, len(whole), len(whole) // 30), *range(len(whole) - 3000, len(whole), 60)}
    for offset in sorted(offsets):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        try:
            LeRobotDataset("x", root=damaged, image_keys=CAMERAS[:1])[LENGTHS[0]]
        except errors.UserError as e:
            refused.add(str(e))
    assert refused
    assert not [line for line in refused if "\n" in line]


@pytest.mark.parametrize("error", [OSError("Received invalid number of bytes"), pa.ArrowInvalid("bad\nmore")])
def test_a_damaged_page_is_named_for_columns_and_for_images(damaged, monkeypatch, error):
    dataset = LeRobotDataset("x", root=damaged, image_keys=CAMERAS[:1])

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fail)
    monkeypatch.setattr(encoded_images, "find", lambda *args: None)
    says = r"episode_000000.parquet: episode 0 cannot be read \((Received|bad)"
    with pytest.raises(errors.DataError, match=says):
        dataset[0]
    with pytest.raises(errors.DataError, match=says):
        LeRobotDataset("x", root=damaged)


def write_h264(path, num_frames):
    """A video of moving stripes, whose frames after the first refer to earlier ones."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("h264", rate=50, options={"g": "100", "bf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(num_frames):
            picture = image(0, 1, 3 * t).transpose(1, 2, 0)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        file.mux(stream.encode())


def test_what_a_decoder_invents_for_a_damaged_frame_is_not_an_image(tmp_path):
    root = pathlib.Path(shutil.copytree(GOLDEN / "lerobot_v21_video", tmp_path / "dataset"))
    path = root / "videos/chunk-000" / CAMERAS[0] / "episode_000001.mp4"
    write_h264(path, LENGTHS[1])
    first = LENGTHS[0]
    whole = LeRobotDataset("x", root=root, image_keys=CAMERAS[:1])
    expected = [whole[first + t][CAMERAS[0]] for t in range(LENGTHS[1])]
    with av.open(str(path)) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][4]
        start, stop = packet.pos + packet.size // 2, packet.pos + packet.size
    data = path.read_bytes()
    path.write_bytes(data[:start] + bytes(stop - start) + data[stop:])
    dataset = LeRobotDataset("x", root=root, image_keys=CAMERAS[:1])
    for t in (0, 3, 1):
        np.testing.assert_array_equal(dataset[first + t][CAMERAS[0]], expected[t])
    # Later frames refer to the damaged one.
    for t in (4, 6, 4):
        with pytest.raises(errors.DataError, match=rf"episode 1, frame {t}, .* cannot be decoded"):
            dataset[first + t]
    np.testing.assert_array_equal(dataset[first + 2][CAMERAS[0]], expected[2])


def test_a_truncated_episode_is_refused(damaged):
    path = damaged / "data/chunk-000/episode_000002.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    with pytest.raises(errors.DataError, match="found 5 frames, expected 7"):
        LeRobotDataset("x", root=damaged)


def test_wrong_frame_spacing_is_refused(damaged):
    path = damaged / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fps": 30}))
    with pytest.raises(errors.DataError, match=r"frame 1 comes 0.020000 s after .* expected 0.033333 s \(30 fps"):
        LeRobotDataset("x", root=damaged)


@pytest.mark.parametrize("content", [b"\x89PNG rubbish", b""])
def test_a_corrupt_image_names_episode_frame_and_camera(damaged, content):
    path = damaged / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index(CAMERAS[0])
    cells = table.column(column).to_pylist()
    cells[4] = {"bytes": content, "path": "frame_000004.png"}
    pq.write_table(table.set_column(column, CAMERAS[0], pa.array(cells, table.schema.field(column).type)), path)
    dataset = LeRobotDataset("x", root=damaged)
    assert dataset[LENGTHS[0] + 3][CAMERAS[0]].shape == (3, 48, 64)
    with pytest.raises(errors.DataError, match=r"episode 1, frame 4, 'observation.images.cam_high'"):
        dataset[LENGTHS[0] + 4]


def test_a_missing_or_shortened_video_names_episode_frame_and_camera(tmp_path):
    root = pathlib.Path(shutil.copytree(GOLDEN / "lerobot_v21_video", tmp_path / "dataset"))
    videos = root / "videos/chunk-000" / CAMERAS[0]
    (videos / "episode_000001.mp4").unlink()
    (videos / "episode_000002.mp4").write_bytes(b"no video")
    dataset = LeRobotDataset("x", root=root, image_keys=CAMERAS[:1])
    with pytest.raises(errors.MissingFileError, match=r"episode 1, frame 0, 'observation.images.cam_high'"):
        dataset[LENGTHS[0]]
    with pytest.raises(errors.DataError, match=r"episode 2, frame 0, 'observation.images.cam_high'"):
        dataset[LENGTHS[0] + LENGTHS[1]]


def test_all_absent_keys_are_reported_at_once(damaged):
    with pytest.raises(errors.DataError) as info:
        LeRobotDataset("x", root=damaged, image_keys=("observation.images.nose",), action_sequence_keys=("acts",))
    assert "camera 'observation.images.nose'" in str(info.value)
    assert "column 'acts'" in str(info.value)
    assert str(CAMERAS[0]) in str(info.value)


def test_the_container_library_can_open_the_golden_video():
    """Guards the test above: the golden files are AV1, which every wheel of the library decodes."""
    with av.open(str(GOLDEN / "lerobot_v21_video/videos/chunk-000" / CAMERAS[0] / "episode_000000.mp4")) as container:
        assert container.streams.video[0].frames == LENGTHS[0]
