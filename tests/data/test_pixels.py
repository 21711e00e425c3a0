"""One image looks the same to every reader: conversion, inspection, upgrade, training and LeRobot's own decoder."""

import io

import h5py
import numpy as np
from PIL import Image
from PIL import ImageOps
import pyarrow.parquet as pq
import pytest

from openpi.policies import realman_policy
from openpi.training.lerobot import dim_names
from openpi.training.lerobot import jpeg as training_jpeg
from openpi.training.lerobot.dataset import LeRobotDataset
from openpi.training.lerobot.images import ParquetImages
from realman import spec
from realman.data import convert
from realman.data.dataset import arm_names
from realman.data.dataset import existing
from realman.data.dataset import layout
from realman.data.dataset import long_episodes
from realman.data.dataset import upgrade
from realman.data.inspection.decode import decode_small
from realman.data.inspection.lerobot import DatasetEpisode
from realman.data.inspection.lerobot import read_meta
from realman.data.raw import RawOptions
from realman.data.raw import exif
from realman.data.raw import open_episode
from realman.data.raw import pixels

ORIENTATION = 0x0112


def scene(height: int = 24, width: int = 32) -> Image.Image:
    """No turn or mirror image of it looks alike."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([8 * x, 10 * y, 200 - 3 * x - 2 * y], -1).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpeg_with(orientation: int, kind: str) -> bytes:
    plain = encoded(scene(), "JPEG", quality=95)
    if kind == "xmp":
        note = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="%d"/>' % orientation
    else:
        order = ">" if kind == "MM" else "<"
        numbers = np.array([42], order + "u2").tobytes() + np.array([8], order + "u4").tobytes()
        entry = np.array([1, ORIENTATION, 3], order + "u2").tobytes() + np.array([1], order + "u4").tobytes()
        value = np.array([orientation, 0, 0, 0], order + "u2").tobytes()
        note = b"Exif\0\0" + kind.encode() + numbers + entry + value
    return plain[:2] + b"\xff\xe1" + (len(note) + 2).to_bytes(2, "big") + note + plain[2:]


@pytest.mark.parametrize("kind", ["II", "MM", "xmp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_without_its_note_a_jpeg_looks_the_same_to_readers_that_turn_images(orientation, kind):
    data = jpeg_with(orientation, kind)
    truth = np.asarray(scene())
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    differs = turned.shape != truth.shape or np.abs(turned - truth).mean() > 8
    assert differs == (orientation != 1)  # the test sees the note
    upright = exif.without_orientation(np.frombuffer(data, np.uint8)).tobytes()
    assert len(upright) == len(data)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(upright))))
    assert np.abs(shown.astype(int) - truth).mean() < 8
    np.testing.assert_array_equal(pixels.decode(upright), pixels.decode(data))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\x0aExif\0\0II", b"Exif\0\0 no jpeg", b"\xff" * 40]
)
def test_bytes_that_are_no_image_stay_as_they_are(data):
    assert exif.without_orientation(np.frombuffer(data, np.uint8)).tobytes() == data
    assert pixels.decode(data) is None


@pytest.mark.parametrize("behind", [b"", b"\0" * 600, b"\x01 of the encoder", b"\xff\xd8 another \xff\xd9"])
def test_bytes_behind_a_jpeg_change_nothing_and_a_cut_is_seen_by_training_and_inspection(behind):
    data = encoded(scene(), "JPEG", quality=95)
    thumbnail = encoded(scene(8, 8), "JPEG")
    whole = data[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    np.testing.assert_array_equal(decode_small(whole + behind), pixels.decode(data))
    cut = whole[: len(whole) - len(data) // 4]
    assert training_jpeg.is_whole(np.frombuffer(whole + behind, np.uint8))
    assert not training_jpeg.is_whole(np.frombuffer(cut, np.uint8))
    assert pixels.decode(cut) is None


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_recording_with_the_note_is_shown_as_recorded_by_every_reader(tmp_path, write_recording, orientation):
    path = write_recording(tmp_path / "raw/episode_0.hdf5", size=(24, 32)).path
    data = np.frombuffer(jpeg_with(orientation, "MM"), np.uint8)
    with h5py.File(path, "a") as file:
        for camera in spec.CAMERAS:
            key = f"observations/images/{camera}"
            del file[key]
            stored = file.create_dataset(key, (6,), dtype=h5py.vlen_dtype(np.uint8))
            for t in range(6):
                stored[t] = data
    args = convert.Args(raw_dir=path.parent, root=tmp_path, workers=1, accept=("frozen",))
    assert convert.main(args) == 0
    key = spec.image_key("cam_low")
    (table,) = args.target.glob("data/*/*.parquet")
    cell = pq.read_table(table)[key][2].as_py()["bytes"]
    official = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(cell))))
    truth = pixels.decode(encoded(scene(), "JPEG", quality=95))
    with open_episode(path, RawOptions()) as episode:
        np.testing.assert_array_equal(episode.image("cam_low", 2), truth)
    np.testing.assert_array_equal(LeRobotDataset("x", root=args.target)[2][key].transpose(1, 2, 0), truth)
    (inspected,) = DatasetEpisode(read_meta(args.target), 0).images("cam_low", [2])
    np.testing.assert_array_equal(inspected, truth)
    assert official.shape == truth.shape
    assert np.abs(official.astype(int) - truth).max() <= 4  # another decoder of JPEGs


def palette_with_alpha() -> Image.Image:
    image = scene().quantize(16)
    image.info["transparency"] = 3
    return image


FORMS = {
    "gray jpeg": (encoded(scene().convert("L"), "JPEG"), np.asarray(scene().convert("L"))[..., None].repeat(3, -1), 3),
    "cmyk jpeg": (encoded(scene().convert("CMYK"), "JPEG", quality=95), np.asarray(scene()), 12),
    "gray png": (encoded(scene().convert("L"), "PNG"), np.asarray(scene().convert("L"))[..., None].repeat(3, -1), 0),
    "16-bit png": (
        encoded(Image.fromarray((np.arange(768, dtype=np.uint16) * 85).reshape(24, 32)), "PNG"),
        (np.arange(768) * 85 >> 8).reshape(24, 32, 1).repeat(3, -1),
        1,
    ),
    "palette png": (encoded(palette_with_alpha(), "PNG"), np.asarray(scene().quantize(16).convert("RGB")), 0),
    "png with alpha": (encoded(Image.merge("RGBA", (*scene().split(), scene().getchannel(0))), "PNG"), np.asarray(scene()), 0),
    "1-bit png": (encoded(scene().convert("1"), "PNG"), np.asarray(scene().convert("1"))[..., None].repeat(3, -1) * 255, 0),
    "bmp": (encoded(scene(), "BMP"), np.asarray(scene()), 0),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_unusual_images_give_the_same_pixels_everywhere(golden_dir, form):
    data, truth, tolerance = FORMS[form]

    class Meta:
        features = {"camera": {"shape": [24, 32, 3]}}  # noqa: RUF012

        def data_path(self, episode: int) -> str:
            return f"episode {episode}"

    trained = ParquetImages(Meta())._decode(data, 0, 0, "camera")  # type: ignore[arg-type]
    inspected = decode_small(data)
    np.testing.assert_array_equal(trained, inspected)
    assert np.abs(trained.astype(int) - truth).max() <= tolerance


@pytest.mark.parametrize(
    "names",
    [
        None,
        [list(spec.DIM_NAMES)],
        {"motors": list(spec.DIM_NAMES[7:] + spec.DIM_NAMES[:7])},
        {name: i for i, name in enumerate(reversed(spec.DIM_NAMES))},
        {"left": [f"q{i}" for i in range(7)], "right": [f"q{i}" for i in range(7)]},
        [f"{side}.j{i}" for side in "lr" for i in range(7)],
        [f"{side}arm{i}" for side in "rl" for i in range(7)],
        [f"joint{side}{i}" for side in ("left", "right") for i in range(7)],
        ["x", "y", "z", "r", "p", "y", "g"] * 2,
        ["left", "right"] * 7,
        [1, None],
        "state",
    ],
)
def test_training_and_data_read_names_alike(names):
    flat = arm_names.flatten(names)
    assert flat == dim_names.flatten(names)

    def order(find):
        try:
            return find(flat)
        except ValueError as e:
            return str(e)

    assert order(arm_names.find_arm_order) == order(realman_policy.find_arm_order)


@pytest.mark.parametrize("fps", [15, 30, 50])
def test_rounding_of_timestamps_exceeds_lerobots_tolerance_after_1024_seconds(fps):
    assert long_episodes.rounding_s(1020 * fps, fps) < 1e-4 < long_episodes.rounding_s(2000 * fps, fps)


def test_an_upgrade_of_a_long_episode_says_what_lerobot_needs(golden_dir, caplog):
    dataset = existing.read(golden_dir / "lerobot_v21_image")
    table = layout.data_path(0).as_posix()
    job = upgrade.UpgradeJob(dataset, 0, 50 * 1500, (), ((table, table),), {})
    long_episodes.report([job], 50)
    assert "episode_000000.parquet: 1500 s is long for float32 timestamps" in caplog.text
    assert "Give lerobot tolerance_s=2e-04" in caplog.text
