"""Images kept in the model's size: not a pixel differs, whatever happened to the file, the source or the disk."""

import concurrent.futures
import dataclasses
import errno
import os
import pathlib
import shutil
import types

import flax.traverse_util
import numpy as np
import pytest

from openpi.models import model as _model
from openpi.shared import errors
from openpi.training import config as _config
from openpi.training import data_loader
from openpi.training.lerobot import encoded_images
from openpi.training.lerobot import fitted_images
from openpi.training.lerobot.dataset import LeRobotDataset
from openpi.training.lerobot.fitted_images import FittedImages
from openpi.training.lerobot.image_file import ImageFile
from openpi.training.lerobot.image_file import Layout
from openpi.training.samples import early_fit
import openpi.transforms as _transforms
from openpi_client import image_tools

SIZE = _model.IMAGE_RESOLUTION
CAMERA = "observation.images.cam_high"


@pytest.fixture(params=["lerobot_v21_image", "lerobot_v21_video"])
def root(request, tmp_path, golden_dir) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(golden_dir / request.param, tmp_path / "dataset"))


def plain(root: pathlib.Path) -> LeRobotDataset:
    return LeRobotDataset("x", root=root)


def keeping(root: pathlib.Path, **options) -> LeRobotDataset:
    dataset = plain(root)
    return dataset.with_fitted(FittedImages(dataset.meta, SIZE, **options))


def wanted(root: pathlib.Path) -> list[dict]:
    """The items as they are without anything kept, resized by the function of the transforms."""
    dataset = plain(root)
    items = [dataset[i] for i in range(len(dataset))]
    for item in items:
        for key in dataset.image_keys:
            item[key] = image_tools.resize_with_pad(item[key].transpose(1, 2, 0), *SIZE).transpose(2, 0, 1)
    return items


def assert_items_equal(dataset: LeRobotDataset, items: list[dict]) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(dataset.__getitem__, range(len(dataset))), items, strict=True):
            assert ours.keys() == theirs.keys()
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])


def files(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted((root / encoded_images.UNPACKED).rglob("*.pictures"))


def no_decoding(dataset: LeRobotDataset) -> LeRobotDataset:
    """Let every attempt to decode fail."""

    def refuse(*_):
        raise AssertionError("an image that is kept was decoded")

    dataset._sources = [(types.SimpleNamespace(read=refuse), keys) for _, keys in dataset._sources]
    return dataset


def test_kept_images_are_the_same_and_are_not_decoded_again(root):
    items = wanted(root)
    assert_items_equal(keeping(root), items)
    assert_items_equal(no_decoding(keeping(root)), items)


def test_two_readers_fill_the_same_files(root):
    items = wanted(root)
    first, second = keeping(root), keeping(root)
    first[0], second[0]  # both have opened, or made, the first files
    for i in range(0, len(first), 2):
        first[i]
    for i in range(1, len(second), 2):
        second[i]
    assert_items_equal(no_decoding(first), items)
    assert_items_equal(no_decoding(second), items)


@pytest.mark.parametrize("fault", ["cut", "flipped", "empty", "foreign"])
def test_what_is_not_whole_is_decoded_again(root, fault):
    items = wanted(root)
    assert_items_equal(keeping(root), items)
    for path in files(root):
        data = bytearray(path.read_bytes())
        data[-SIZE[0] * SIZE[1]] ^= 1
        path.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b"", "foreign": b"x" * 9999}[fault])
    assert_items_equal(keeping(root), items)
    assert_items_equal(no_decoding(keeping(root)), items)


def test_frames_do_not_stand_in_for_each_other(tmp_path):
    layout = Layout(b"d" * 64, 3, (2, 2))
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    file = ImageFile.open(tmp_path / "a.pictures", layout, make=True)
    file.write(0, image)
    data = bytearray((tmp_path / "a.pictures").read_bytes())
    data[layout.sum_at(1) : layout.sum_at(2)] = data[layout.sum_at(0) : layout.sum_at(1)]
    data += b"\0" * layout.frame_bytes
    data[layout.frame_at(1) :] = image.tobytes()
    (tmp_path / "a.pictures").write_bytes(data)
    file = ImageFile.open(tmp_path / "a.pictures", layout, make=False)
    np.testing.assert_array_equal(file.read(0), image)
    assert [file.read(1), file.read(2)] == [None, None]


def test_another_video_in_the_place_of_the_first_is_noticed(tmp_path, golden_dir):
    root = pathlib.Path(shutil.copytree(golden_dir / "lerobot_v21_video", tmp_path / "dataset"))
    before = keeping(root)[0][CAMERA]
    shutil.copy(plain(root).meta.video_path(1, CAMERA), plain(root).meta.video_path(0, CAMERA))
    after = keeping(root)[0][CAMERA]
    assert (before != after).any()
    decoded = plain(root)[0][CAMERA].transpose(1, 2, 0)
    np.testing.assert_array_equal(after, image_tools.resize_with_pad(decoded, *SIZE).transpose(2, 0, 1))


def test_a_source_that_was_touched_is_decoded_again(root):
    items = wanted(root)
    assert_items_equal(keeping(root), items)
    for path in [*root.rglob("episode_*.parquet"), *root.rglob("*.mp4")]:
        os.utime(path)
    with pytest.raises(AssertionError, match="was decoded"):
        no_decoding(keeping(root))[0]
    assert_items_equal(keeping(root), items)
    assert_items_equal(no_decoding(keeping(root)), items)


@pytest.mark.parametrize("fault", ["no room", "disk full", "not a folder"])
def test_without_room_images_are_decoded_each_time_with_one_warning(root, fault, monkeypatch, caplog):
    items = wanted(root)
    if fault == "not a folder":
        (root / encoded_images.UNPACKED).write_text("in the way")
    if fault == "disk full":

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
    dataset = keeping(root, keep_free=2**62 if fault == "no room" else 0)
    assert_items_equal(dataset, items)
    assert_items_equal(dataset, items)
    warnings = [record for record in caplog.records if "no more images are kept" in record.message]
    assert len(warnings) == 1
    assert all(path.stat().st_size <= 64 for path in files(root))


def test_half_of_the_free_space_is_left(root, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(fitted_images.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(fitted_images, "_CHECK_EVERY", 1)
    dataset = keeping(root)
    dataset[0]
    usage.free = 499
    dataset[1]
    with pytest.raises(AssertionError, match="was decoded"):
        no_decoding(keeping(root))[1]
    no_decoding(keeping(root))[0]


def test_a_missing_video_is_named_as_without_kept_images(tmp_path, golden_dir):
    root = pathlib.Path(shutil.copytree(golden_dir / "lerobot_v21_video", tmp_path / "dataset"))
    plain(root).meta.video_path(1, CAMERA).unlink()
    dataset = keeping(root)
    with pytest.raises(errors.MissingFileError, match=f"episode 1, frame 0, '{CAMERA}': the video file is missing"):
        dataset[dataset.meta.episodes[1].first_frame]


def batches(cfg) -> list[dict]:
    loaded = data_loader.create_data_loader(cfg, skip_norm_stats=True, num_batches=6)
    return [{**flax.traverse_util.flatten_dict(obs.to_dict()), "actions": actions} for obs, actions in loaded]


@pytest.mark.parametrize("reduced", [False, True])
def test_batches_are_the_same_with_and_without(home, reduced):
    cfg = dataclasses.replace(_config.get_config("debug_realman"), batch_size=4)

    def with_data(**flags):
        return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, reduced_jpeg=reduced, **flags))

    decoded = batches(with_data(keep_images=False))
    folder = home / "data/lerobot/realman/dual_arm" / encoded_images.UNPACKED
    assert not folder.exists()
    for _ in range(2):
        for ours, theirs in zip(batches(with_data()), decoded, strict=True):
            for key in theirs:
                np.testing.assert_array_equal(ours[key], theirs[key])
    assert [path.name for path in folder.iterdir()] == ["224x224_reduced" if reduced else "224x224"]


@dataclasses.dataclass(frozen=True)
class Crop(_transforms.DataTransformFn):
    """Takes the left half of the images."""

    def __call__(self, data: dict) -> dict:
        return {**data, "image": {key: image[:, : image.shape[1] // 2] for key, image in data["image"].items()}}


def test_images_are_kept_only_where_the_transforms_do_not_look_at_their_size(home, caplog):
    cfg = _config.get_config("debug_realman")
    data_config = cfg.data.create(cfg.assets_dirs, cfg.model)
    dataset = LeRobotDataset(cfg.data.repo_id)
    assert early_fit.fit_early(dataset, data_config)[0][CAMERA].shape == (3, *SIZE)
    cropping = dataclasses.replace(data_config, data_transforms=data_config.data_transforms.push(inputs=[Crop()]))
    with caplog.at_level("INFO"):
        assert early_fit.fit_early(dataset, cropping) is dataset
    assert "depend on their size" in caplog.text
    no_resize = dataclasses.replace(data_config, model_transforms=_transforms.Group())
    assert early_fit.fit_early(dataset, no_resize) is dataset
