"""A dataset in the dialect of any writer: the same values in upgrade, inspection, statistics and a batch of training."""

import dataclasses
import json

import numpy as np
import pytest

from openpi.training import config as _config
from openpi.training import data_loader
from openpi.training.lerobot.dataset import LeRobotDataset
from openpi.training.stats import norm_stats
from realman import spec
from realman.data import convert
from realman.data.dataset import layout
from realman.data.inspection.inspected_data import open_data
from realman.data.raw import RawOptions
from tests.e2e import dialects


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Statistics and a batch of the dataset as this project writes it."""
    home = tmp_path_factory.mktemp("expected")
    dialects.make(home / "towels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_LEROBOT_HOME", str(home))
        patch.chdir(home)
        return learn(home)


def learn(folder):
    """Return the statistics and the first batch."""
    base = _config.get_config("debug_realman")
    data = dataclasses.replace(base.data, repo_id="towels", keep_images=False)
    config = dataclasses.replace(base, batch_size=4, num_workers=0, data=data, assets_base_dir=str(folder / "assets"))
    report = norm_stats.compute_norm_stats(config)
    loader = data_loader.create_data_loader(config, shuffle=False, num_batches=1)
    observation, actions = next(iter(loader))
    parts = {"state": observation.state, "tokens": observation.tokenized_prompt, "actions": actions}
    stats = {f"{key} {name}": value for key, of in report.stats.items() for name, value in vars(of).items()}
    return {key: np.asarray(value) for key, value in {**parts, **observation.images, **stats}.items()}


def check_frames(root):
    dataset = LeRobotDataset("towels", root=root, action_horizon=3)
    assert len(dataset) == sum(dialects.LENGTHS)
    for index in range(len(dataset)):
        item = dataset[index]
        episode = int(index >= dialects.LENGTHS[0])
        t = index - episode * dialects.LENGTHS[0]
        window = np.minimum(t + np.arange(3), dialects.LENGTHS[episode] - 1)
        np.testing.assert_array_equal(item[spec.STATE_KEY], dialects.vectors(0, episode)[t])
        np.testing.assert_array_equal(item[spec.ACTION_KEY], dialects.vectors(1, episode)[window])
        numbers = [item[key] for key in ("index", "episode_index", "frame_index")]
        assert [np.shape(number) for number in numbers] == [()] * 3
        assert (*numbers, item["task"]) == (index, episode, t, dialects.TASKS[episode])
        assert item["timestamp"] == pytest.approx(t / dialects.FPS)
        for c, key in enumerate(dialects.CAMERA_KEYS):
            np.testing.assert_array_equal(item[key].transpose(1, 2, 0), dialects.image(c, episode, t))


def check_inspection(root):
    data = open_data(root, RawOptions())
    assert len(data.names) == len(dialects.LENGTHS)
    for episode, name in enumerate(data.names):
        with data.open(name) as view:
            assert (view.num_frames, view.fps) == (dialects.LENGTHS[episode], dialects.FPS)
            assert view.task == dialects.TASKS[episode]
            assert view.cameras == dict.fromkeys(dialects.CAMERAS, (24, 32))
            np.testing.assert_array_equal(view.state, dialects.vectors(0, episode))
            np.testing.assert_array_equal(view.action, dialects.vectors(1, episode))
            np.testing.assert_allclose(view.timestamp, np.arange(view.num_frames) / dialects.FPS, atol=1e-6)
            for c, camera in enumerate(dialects.CAMERAS):
                (image,) = view.images(camera, [2])
                np.testing.assert_array_equal(image, dialects.image(c, episode, 2))


def check_stats(root):
    """Statistics are those of the values, and every feature but texts has all of them."""
    features = json.loads((root / layout.INFO).read_text())["features"]
    for episode, line in enumerate(layout.read_json_lines(root / layout.EPISODES_STATS)):
        stats = line["stats"]
        assert stats.keys() == {key for key, feature in features.items() if feature["dtype"] != "string"}
        assert all(part.keys() >= {"min", "max", "mean", "std", "count"} for part in stats.values())
        for k, key in enumerate(dialects.VECTORS):
            np.testing.assert_allclose(stats[key]["mean"], dialects.vectors(k, episode).mean(0), rtol=1e-6)
        for c, key in enumerate(dialects.CAMERA_KEYS):
            images = [dialects.image(c, episode, t) for t in range(dialects.LENGTHS[episode])]
            np.testing.assert_allclose(np.ravel(stats[key]["mean"]), np.mean(images, (0, 1, 2)) / 255)


@pytest.mark.parametrize("dialect", dialects.DIALECTS)
def test_a_dialect_means_the_same_to_every_command(tmp_path, monkeypatch, expected, dialect):
    root = dialects.make(tmp_path / "towels")
    dialects.DIALECTS[dialect](root)
    upgraded = convert.Args(raw_dir=root, root=tmp_path, repo_id="upgraded", workers=1)
    assert convert.main(upgraded) == 0
    for folder in (root, upgraded.target):
        check_frames(folder)
        check_inspection(folder)
    check_stats(upgraded.target)
    # Statistics and a batch, from a folder of their own.
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = learn(tmp_path)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize(
    ("path", "message"),
    [("../elsewhere.png", "outside the dataset's folder"), ("images/none.png", "cannot be read")],
)
def test_a_file_that_is_no_part_of_the_dataset_is_not_read(tmp_path, path, message):
    root = dialects.make(tmp_path / "towels")
    (tmp_path / "elsewhere.png").write_bytes(dialects.png(dialects.image(0, 0, 0)))
    dialects.columns(
        dialects.CAMERA_KEYS, lambda column: dialects.pa.array([{"bytes": None, "path": path}] * len(column))
    )(root)
    for read in (check_frames, check_inspection):
        with pytest.raises(Exception, match=message) as info:
            read(root)
        assert type(info.value).__name__ in ("DataError", "MissingFileError", "DatasetError")
