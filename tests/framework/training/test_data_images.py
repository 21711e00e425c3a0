"""Single frames out of parquet files of any writer: same images, no neighbors, bounded memory, faults named."""

import concurrent.futures
import dataclasses
import io
import pathlib
import shutil

import cv2
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi.shared import errors
from openpi.training import config as _config
from openpi.training import data_loader
from openpi.training.lerobot import encoded_images
from openpi.training.lerobot import images as lerobot_images
from openpi.training.lerobot import png
from openpi.training.lerobot.dataset import LeRobotDataset
from openpi_client import image_tools
from realman.data.dataset import png as png_writer

CAMERA = "observation.images.cam_high"
ONE_BY_ONE = {"row_group_size": 1, "compression": "none", "use_dictionary": False, "write_statistics": False}


@pytest.fixture
def root(tmp_path, golden_dir) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(golden_dir / "lerobot_v21_image", tmp_path / "dataset"))


def episode_path(root: pathlib.Path, episode: int) -> pathlib.Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def rewrite(root: pathlib.Path, **layout) -> None:
    for episode in range(3):
        path = episode_path(root, episode)
        pq.write_table(pq.read_table(path), path, **layout)


def set_image(root: pathlib.Path, episode: int, frame: int, data: bytes | None, **layout) -> None:
    table = pq.read_table(episode_path(root, episode))
    column = table.schema.get_field_index(CAMERA)
    cells = table.column(column).to_pylist()
    cells[frame] = None if data is None else {"bytes": data, "path": "x"}
    cells = pa.array(cells, table.schema.field(column).type)
    pq.write_table(table.set_column(column, CAMERA, cells), episode_path(root, episode), **layout)


def images(root: pathlib.Path) -> np.ndarray:
    dataset = LeRobotDataset("x", root=root, image_keys=[CAMERA])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return np.stack(list(pool.map(lambda i: dataset[i][CAMERA], range(len(dataset)))))


LAYOUTS = [ONE_BY_ONE, {**ONE_BY_ONE, "write_statistics": True}, {**ONE_BY_ONE, "data_page_version": "2.0"},
           {**ONE_BY_ONE, "compression": "snappy"}, {"row_group_size": 5}]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images(root, golden_dir, layout):
    rewrite(root, **layout)
    np.testing.assert_array_equal(images(root), images(golden_dir / "lerobot_v21_image"))


def test_images_of_our_writers_layout_are_read_from_their_place(root):
    rewrite(root, **ONE_BY_ONE)
    meta = LeRobotDataset("x", root=root, image_keys=[]).meta
    located = encoded_images.find(meta, 0, [CAMERA])[CAMERA]
    assert located.is_chunk
    assert located.read(7)[:4] == b"\x89PNG"
    assert located.spans[:, 1].max() < 20_000  # one image each, not the row group of the episode


def test_large_row_groups_are_unpacked_once_and_again_when_they_change(root, golden_dir, monkeypatch, caplog):
    wanted = images(golden_dir / "lerobot_v21_image")
    monkeypatch.setattr(encoded_images, "_MAX_GROUP_BYTES", 1000)
    np.testing.assert_array_equal(images(root), wanted)
    assert caplog.text.count("is unpacked into") == 1
    files = sorted((root / encoded_images.UNPACKED).rglob("*.*"))
    assert [path.name for path in files if path.is_file()] == [
        f"episode_{i:06d}.{s}" for i in range(3) for s in ("bin", "npy")
    ]
    before = [path.stat().st_mtime_ns for path in files]
    np.testing.assert_array_equal(images(root), wanted)
    assert [path.stat().st_mtime_ns for path in files] == before
    set_image(root, 1, 4, cv2.imencode(".png", np.full((48, 64, 3), 9, np.uint8))[1].tobytes())
    assert (images(root)[12 + 4] == 9).all()


def test_a_dataset_that_cannot_be_written_to_is_read_group_by_group(root, monkeypatch):
    wanted = images(root)
    monkeypatch.setattr(encoded_images, "_MAX_GROUP_BYTES", 1000)
    monkeypatch.setattr(encoded_images.os, "access", lambda *_: False)
    np.testing.assert_array_equal(images(root), wanted)
    assert not [path for path in (root / encoded_images.UNPACKED).rglob("*") if path.is_file()]


@pytest.mark.parametrize("layout", [ONE_BY_ONE, {}])
@pytest.mark.parametrize("content", [b"\x89PNG rubbish", b"", None])
def test_a_broken_image_stops_training_and_is_named(home, layout, content):
    root = home / "data/lerobot/realman/dual_arm"
    set_image(root, 1, 4, content, **layout)
    cfg = dataclasses.replace(_config.get_config("debug_realman"), batch_size=4)
    batches = iter(data_loader.create_data_loader(cfg, skip_norm_stats=True, num_batches=7))
    for _ in range(4):
        next(batches)  # frames 0 to 15
    with pytest.raises(
        errors.DataError, match=rf"episode 1, frame 4, '{CAMERA}': the image .*\. Convert this recording"
    ):
        next(batches)


@pytest.mark.parametrize("max_weight", [1, 3])
def test_open_files_and_row_groups_stay_bounded(root, golden_dir, monkeypatch, max_weight):
    monkeypatch.setattr(lerobot_images, "_MAX_OPEN_PARQUET_FILES", max_weight)
    monkeypatch.setattr(lerobot_images, "_MAX_PAGE_BYTES", 100_000)
    dataset = LeRobotDataset("x", root=root, image_keys=[CAMERA])
    wanted = images(golden_dir / "lerobot_v21_image")
    for i in np.random.default_rng(0).permutation(len(dataset)):
        np.testing.assert_array_equal(dataset[int(i)][CAMERA], wanted[i])
        source = dataset._sources[0][0]
        assert len(source._files._values) <= max_weight
        assert source._pages._weight <= 100_000 or len(source._pages._values) == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (48, 64), (70, 33)])
def test_the_converters_pngs_are_decoded_exactly(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    encoded = png_writer.encode(image)
    np.testing.assert_array_equal(png.decode(encoded), image)
    np.testing.assert_array_equal(png.decode(encoded), cv2.imdecode(np.frombuffer(encoded, np.uint8), 1)[..., ::-1])


def test_other_and_broken_pngs_are_left_to_the_general_decoder(golden_dir):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    grey = cv2.imencode(".png", image[..., 0])[1].tobytes()
    pillow = io.BytesIO()
    Image.fromarray(image).save(pillow, "PNG")  # chooses a filter row by row
    ours = png_writer.encode(image)
    flipped = bytearray(ours)
    flipped[len(ours) // 2] ^= 0x55
    for data in (grey, pillow.getvalue(), ours[:-30], ours[: len(ours) // 2], bytes(flipped), b"", b"\x89PNG rubbish"):
        assert png.decode(data) is None


def test_a_jpeg_that_was_cut_off_is_refused(root):
    jpeg = cv2.imencode(".jpg", photo(48, 64))[1].tobytes()
    set_image(root, 1, 4, jpeg[: len(jpeg) // 2], **ONE_BY_ONE)
    set_image(root, 2, 0, jpeg + b"\0" * 300, **ONE_BY_ONE)
    dataset = LeRobotDataset("x", root=root, image_keys=[CAMERA])
    with pytest.raises(errors.DataError, match=f"episode 1, frame 4, '{CAMERA}': the image .* cannot be decoded"):
        dataset[12 + 4]
    assert dataset[12 + 9][CAMERA].shape == (3, 48, 64)  # padded: as recorded


@pytest.mark.parametrize("behind", [b"", b"\0" * 700, b"\xff\xd8 part of the frame before \xff\xd9", b"\x01" * 300_000])
def test_bytes_behind_a_jpeg_are_no_damage_and_a_thumbnails_end_is_no_end(root, behind):
    header = io.BytesIO()
    Image.fromarray(photo(8, 8)).save(header, "JPEG")
    thumbnail = b"\xff\xe1" + (len(header.getvalue()) + 2).to_bytes(2, "big") + header.getvalue()
    jpeg = cv2.imencode(".jpg", photo(48, 64))[1].tobytes()
    whole = jpeg[:2] + thumbnail + jpeg[2:]
    set_image(root, 0, 0, jpeg, **ONE_BY_ONE)
    set_image(root, 1, 0, whole + behind, **ONE_BY_ONE)
    set_image(root, 2, 0, whole[: len(whole) // 2], **ONE_BY_ONE)
    dataset = LeRobotDataset("x", root=root, image_keys=[CAMERA])
    np.testing.assert_array_equal(dataset[12][CAMERA], dataset[0][CAMERA])
    with pytest.raises(errors.DataError, match="cannot be decoded"):
        dataset[21]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [None, (12, 16)])
def test_images_are_shown_as_stored_whatever_a_camera_notes(root, orientation, shrink):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, noted = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo(48, 64)).save(plain, "JPEG")
    Image.fromarray(photo(48, 64)).save(noted, "JPEG", exif=exif)
    set_image(root, 0, 0, plain.getvalue(), **ONE_BY_ONE)
    set_image(root, 0, 1, noted.getvalue(), **ONE_BY_ONE)
    dataset = LeRobotDataset("x", root=root, image_keys=[CAMERA], shrink_jpeg_to=shrink)
    assert dataset[1][CAMERA].shape == (3, 48, 64) if shrink is None else (3, 12, 16)
    np.testing.assert_array_equal(dataset[1][CAMERA], dataset[0][CAMERA])


def photo(height: int, width: int) -> np.ndarray:
    """A smooth image with edges and the noise of a camera."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([127 + 90 * np.sin(0.02 * y * (c + 1) + 0.03 * x) for c in range(3)], -1)
    waves[height // 3 : height // 2, width // 4 : width // 2] = (200, 40, 60)
    return np.clip(waves + np.random.default_rng(0).normal(0, 3, waves.shape), 0, 255).astype(np.uint8)


def test_reduced_jpegs_are_nearly_the_same_after_resizing(root):
    for episode in range(3):
        jpeg = cv2.imencode(".jpg", photo(480, 640), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        set_image(root, episode, 0, jpeg, **ONE_BY_ONE)
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace("48,", "480,").replace("64\n", "640\n").replace("64,", "640,"))
    whole = LeRobotDataset("x", root=root, image_keys=[CAMERA])[0][CAMERA]
    reduced = LeRobotDataset("x", root=root, image_keys=[CAMERA], shrink_jpeg_to=(224, 224))[0][CAMERA]
    assert whole.shape == (3, 480, 640)
    assert reduced.shape == (3, 240, 320)
    seen = [image_tools.resize_with_pad(x.transpose(1, 2, 0), 224, 224).astype(int) for x in (whole, reduced)]
    error = np.abs(seen[0] - seen[1])
    assert error.mean() < 0.6
    assert np.percentile(error, 99) <= 2


def test_jpegs_are_never_decoded_smaller_than_they_will_be_shown():
    class Meta:
        features = {CAMERA: {"shape": [3, 240, 320], "names": ["channels", "height", "width"]}}  # noqa: RUF012

    source = lerobot_images.ParquetImages(Meta(), (224, 224))
    assert source._flag(CAMERA) == cv2.IMREAD_COLOR
    Meta.features = {CAMERA: {"shape": [480, 640, 3], "names": ["height", "width", "channels"]}}
    assert source._flag(CAMERA) == cv2.IMREAD_REDUCED_COLOR_2
    Meta.features = {CAMERA: {"shape": [1080, 1920, 3], "names": None}}
    assert source._flag(CAMERA) == cv2.IMREAD_REDUCED_COLOR_8
