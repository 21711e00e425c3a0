"""The LeRobot v2.1 format, part by part, against datasets that LeRobot itself wrote."""

import io
import json

import av
import cv2
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pyarrow.parquet as pq
import pytest

from realman import spec
from realman.data.dataset import layout
from realman.data.dataset import png
from realman.data.dataset.parquet import EpisodeTable
from realman.data.dataset.parquet import make_schema
from realman.data.dataset.stats import ImageStats
from realman.data.dataset.stats import sample_frames
from realman.data.dataset.stats import vector_stats
from realman.data.dataset.video import VideoWriter
from realman.data.dataset.video import read_frames
from realman.data.dataset.video_codecs import video_info
from realman.errors import DatasetError

SIZES = tuple((camera, 48, 64) for camera in spec.CAMERAS)


@pytest.fixture(params=["image", "video"])
def golden(request, golden_dir):
    """(folder of LeRobot's dataset, features of ours)."""
    info = video_info("av1", 50) if request.param == "video" else None
    features = layout.robot_features(SIZES, has_velocity=True, has_effort=True, video_info=info)
    return golden_dir / f"lerobot_v21_{request.param}", features


def test_info_is_lerobots_key_for_key(golden):
    root, features = golden
    expected = json.loads((root / "meta/info.json").read_text())
    info = layout.make_info(features, robot_type="aloha", fps=50, num_frames=[12, 9, 7], num_tasks=2)
    assert json.dumps(info, indent=4) == json.dumps(expected, indent=4)


def test_info_is_a_real_users_key_for_key(golden_dir):
    expected = json.loads((golden_dir / "user_info.json").read_text())
    features = layout.robot_features([(c, 480, 640) for c in spec.CAMERAS], has_velocity=True, has_effort=True)
    info = layout.make_info(features, robot_type="aloha", fps=50, num_frames=[300] * 123, num_tasks=1)
    # The user's dataset is of the version before, whose image datasets still named a path for videos.
    expected |= {"codebase_version": "v2.1", "video_path": None}
    assert json.dumps(info) == json.dumps(expected)


def test_the_tables_schema_is_lerobots(golden):
    root, features = golden
    expected = pq.read_schema(root / "data/chunk-000/episode_000000.parquet")
    schema = make_schema(features)
    assert schema.equals(expected)
    assert json.loads(schema.metadata[b"huggingface"]) == json.loads(expected.metadata[b"huggingface"])


def test_statistics_are_lerobots(golden_dir):
    root = golden_dir / "lerobot_v21_image"
    for line in layout.read_json_lines(root / layout.EPISODES_STATS):
        table = pq.read_table(root / layout.data_path(line["episode_index"]))
        for key, expected in line["stats"].items():
            if key.startswith(spec.IMAGE_KEY_PREFIX):
                stats = ImageStats()
                for t in sample_frames(len(table)):
                    data = np.frombuffer(table[key][t].as_py()["bytes"], np.uint8)
                    stats.add(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
                found = stats.result()
            elif key == "timestamp":
                found = vector_stats(np.arange(len(table)) / 50)
            else:
                dtype = np.float32 if table.schema.field(key).type.num_fields else np.int64
                found = vector_stats(np.array(table[key].to_pylist(), dtype))
            assert list(found) == list(expected)
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-9, err_msg=f"{key} {name}")
                assert np.shape(found[name]) == np.shape(values)


@pytest.mark.parametrize(
    ("num_frames", "num_sampled"),
    [(1, 1), (99, 99), (100, 100), (300, 100), (1000, 177), (10_000, 1000), (300_000, 10_000)],
)
def test_as_many_frames_are_sampled_as_lerobot_samples(num_frames, num_sampled):
    frames = sample_frames(num_frames)
    assert len(frames) == len(set(frames)) == num_sampled
    assert (frames[0], frames[-1]) == (0, num_frames - 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.sampled_from([(5, 3), (299, 4), (480, 640), (640, 480), (300, 300)]))
def test_image_statistics_equal_those_of_all_strided_pixels(seed, size):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, *size, 3), np.uint8)
    stats = ImageStats()
    for image in images:
        stats.add(image)
    stride = {640: 4, 300: 2}.get(max(size), 1)
    pixels = images[:, ::stride, ::stride].reshape(-1, 3) / 255
    found = stats.result()
    assert found["count"] == [2]
    for name, expected in (
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
    ):
        np.testing.assert_allclose(np.squeeze(found[name]), expected, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    levels=st.sampled_from([1, 2, 9, 256]),
)
def test_a_png_shows_every_reader_the_same_image(seed, size, levels):
    image = np.random.default_rng(seed).integers(0, levels, (*size, 3)).astype(np.uint8)
    data = png.encode(image)
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)), image)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], image)


def test_a_png_of_a_noisy_camera_is_as_small_as_opencvs():
    y, x = np.mgrid[:480, :640]
    waves = np.stack([127 + 100 * np.sin(0.02 * y * (c + 1) + 0.015 * x) for c in range(3)], -1)
    image = np.clip(waves + np.random.default_rng(0).normal(0, 3, waves.shape), 0, 255).astype(np.uint8)
    assert len(png.encode(image)) < 1.01 * len(cv2.imencode(".png", image)[1])


def test_chunks_hold_a_thousand_episodes():
    assert layout.data_path(999).as_posix() == "data/chunk-000/episode_000999.parquet"
    assert layout.video_path(1000, "k").as_posix() == "videos/chunk-001/k/episode_001000.mp4"
    features = layout.robot_features([], has_velocity=False, has_effort=False)
    assert layout.make_info(features, robot_type="r", fps=50, num_frames=[1] * 1001, num_tasks=1)["total_chunks"] == 2


def test_a_table_appears_only_when_it_is_complete(tmp_path):
    features = layout.robot_features([], has_velocity=False, has_effort=False)
    path = tmp_path / "data" / "episode.parquet"

    def write_half():
        with EpisodeTable(path, features):
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not path.exists()


def test_a_video_shows_its_frames_and_every_second_one_is_a_key_frame(tmp_path):
    y, x = np.mgrid[:64, :96]
    frames = [np.stack([(x + 3 * t) % 256, (2 * y) % 256, (x + y) % 256], -1).astype(np.uint8) for t in range(7)]
    for codec in ("av1", "h264"):
        path = tmp_path / f"{codec}.mp4"
        with VideoWriter(path, fps=50, height=64, width=96, codec=codec) as video:
            for frame in frames:
                video.write(frame)
        decoded = list(read_frames(path, {0, 3, 6}))
        error = np.abs(np.stack(decoded).astype(int) - np.stack(frames)[[0, 3, 6]])
        assert error.mean() < 8, codec
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.average_rate, stream.frames) == (50, 7)
            keys = [p.is_keyframe for p in container.demux(stream) if p.size]
        assert keys == [t % 2 == 0 for t in range(7)], codec
        with pytest.raises(DatasetError, match="ends before frame 7"):
            list(read_frames(path, {7}))


def test_a_video_of_odd_size_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"47x64 px\. Use --mode image"):
        VideoWriter(tmp_path / "v.mp4", fps=50, height=47, width=64, codec="av1")
