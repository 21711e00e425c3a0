"""The data loader: what samples become, in which order they come, and that they can be resumed."""

import dataclasses
import pathlib
import threading

import jax
import numpy as np
import pytest

from openpi.models import pi0_config
from openpi.shared import errors
from openpi.shared import normalize
from openpi.training import config as _config
from openpi.training import data_loader
from openpi.training.configs.data_config import DataConfig
from openpi.training.lerobot import images as lerobot_images
from openpi.training.samples import datasets
from openpi.training.samples.sampling import SampleOrder
from openpi.training.stats import norm_stats
import openpi.transforms as _transforms

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NUM_FRAMES = 28


def config(**overrides):
    return dataclasses.replace(_config.get_config("debug_realman"), **{"batch_size": 4, "num_workers": 2} | overrides)


class Numbers:
    """A dataset of numbered samples in the shape that a model wants."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        self.threads.add(threading.current_thread().name)
        return {
            "image": {"base_0_rgb": np.full((2, 2, 3), index % 256, np.uint8)},
            "image_mask": {"base_0_rgb": np.True_},
            "state": np.array([index], np.float64),
            "actions": np.full((2, 1), index, np.float32),
        }


def loader(length: int = 10, **overrides) -> data_loader.DataLoader:
    options = {"batch_size": 4, "shuffle": True, "seed": 3, "num_batches": 6} | overrides
    return data_loader.DataLoader(Numbers(length), DataConfig(), **options)


def numbers(batches) -> list[list[int]]:
    return [np.asarray(actions)[:, 0, 0].astype(int).tolist() for _, actions in batches]


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_the_order_does_not_depend_on_the_number_of_threads(num_workers):
    assert numbers(loader(num_workers=num_workers)) == numbers(loader(num_workers=0))


def test_every_epoch_has_every_sample_once_in_another_order():
    flat = np.concatenate(numbers(loader(num_batches=5))).tolist()
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] != list(range(10))


def test_unshuffled_samples_come_in_order_again_and_again():
    assert np.concatenate(numbers(loader(shuffle=False, num_batches=5))).tolist() == [*range(10), *range(10)]


def test_a_dataset_smaller_than_a_batch_comes_again_within_it():
    (batch,) = numbers(loader(length=3, batch_size=8, num_batches=1))
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
    assert len(batch) == 8


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_restored_loader_continues_where_the_state_was_taken(num_workers, taken):
    whole = numbers(loader(num_workers=num_workers))
    first = loader(num_workers=num_workers)
    batches = iter(first)
    begun = [next(batches) for _ in range(taken)]
    second = loader(num_workers=num_workers, num_batches=6 - taken)
    second.restore(first.state())
    assert numbers(begun) + numbers(second) == whole


def test_another_seed_is_noticed_at_a_resume(caplog):
    other = loader(seed=4)
    other.restore({"position": 8, "seed": 3})
    assert "seed 3" in caplog.text
    assert "seed 4" in caplog.text


def test_another_number_of_samples_is_noticed_at_a_resume(caplog):
    loader(length=12).restore(loader(length=10).state())
    assert "began with 10 samples and continues with 12" in caplog.text
    caplog.clear()
    loader().restore({"position": 8, "seed": 3})  # of an older checkpoint
    assert not caplog.text


def test_samples_are_read_by_the_pool_and_errors_reach_the_caller():
    class Broken(Numbers):
        def __getitem__(self, index: int) -> dict:
            if index == 6:
                raise errors.DataError("episode 1, frame 6: broken")
            return super().__getitem__(index)

    dataset = Broken(10)
    broken = data_loader.DataLoader(dataset, DataConfig(), batch_size=4, num_workers=2, num_batches=3)
    batches = iter(broken)
    next(batches)
    with pytest.raises(errors.DataError, match="episode 1, frame 6: broken"):
        next(batches)
    assert dataset.threads
    assert all(name.startswith("loader") for name in dataset.threads)
    assert broken.state()["position"] == 4


def test_batches_are_float_arrays_on_the_devices():
    observation, actions = next(iter(loader()))
    assert isinstance(actions, jax.Array)
    assert observation.state.dtype == np.float32
    assert observation.images["base_0_rgb"].shape == (4, 2, 2, 3)
    pixel = np.asarray(observation.images["base_0_rgb"])[:, 0, 0, 0]
    np.testing.assert_allclose(pixel, np.asarray(observation.state)[:, 0] / 255 * 2 - 1, atol=1e-6)


def test_order_is_a_pure_function_of_the_position():
    order = SampleOrder(num_samples=7, shuffle=True, seed=1)
    whole = order.take(0, 40)
    for start, count in ((0, 0), (3, 5), (6, 30), (14, 7)):
        np.testing.assert_array_equal(order.take(start, count), whole[start : start + count])


def test_a_realman_sample_reaches_the_model_normalized_padded_and_with_its_prompt(home):
    cfg = config()
    norm_stats.compute_norm_stats(cfg)
    observation, actions = next(iter(data_loader.create_data_loader(cfg, num_batches=1)))
    assert list(observation.images) == ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
    assert all(image.shape == (4, 224, 224, 3) for image in observation.images.values())
    assert all(bool(mask.all()) for mask in observation.image_masks.values())
    assert observation.state.shape == (4, 32)
    assert actions.shape == (4, 50, 32)
    assert not np.asarray(actions)[..., 14:].any()
    assert observation.tokenized_prompt.shape == (4, cfg.model.max_token_len)
    assert np.asarray(observation.tokenized_prompt_mask).any(axis=1).all()

    # Undone by hand, frame 0 of the dataset: layout of the model (left arm first), grippers absolute.
    stats = normalize.load(home / "assets/debug_realman/realman/dual_arm")
    state = np.asarray(observation.state)[0, :14] * (stats["state"].std + 1e-6) + stats["state"].mean
    np.testing.assert_allclose(state, np.roll(np.sin(0.3 * np.arange(14)), 7), atol=1e-5)
    first = np.asarray(actions)[0, 0, :14] * (stats["actions"].std + 1e-6) + stats["actions"].mean
    np.testing.assert_allclose(first[[6, 13]], np.sin(0.3 * np.array([13, 6]) + 1), atol=1e-5)


def test_only_the_cameras_of_the_config_are_decoded(home, monkeypatch):
    decoded = set()
    read = lerobot_images.ParquetImages.read

    def spy(self, episode_index, frame, keys):
        decoded.update(keys)
        return read(self, episode_index, frame, keys)

    monkeypatch.setattr(lerobot_images.ParquetImages, "read", spy)
    next(iter(data_loader.create_data_loader(config(), num_batches=1, skip_norm_stats=True)))
    assert decoded == {f"observation.images.{name}" for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")}


def test_missing_statistics_name_the_file_and_the_command(home):
    with pytest.raises(errors.MissingFileError) as info:
        data_loader.create_data_loader(config())
    assert str(home / "assets/debug_realman/realman/dual_arm/norm_stats.json") in str(info.value)
    assert "make norm-stats CONFIG=debug_realman" in str(info.value)


def test_damaged_statistics_are_reported_as_such(home):
    path = home / "assets/debug_realman/realman/dual_arm/norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"norm_stats": {"state": ')
    with pytest.raises(errors.DataError, match=r"norm_stats\.json"):
        data_loader.create_data_loader(config())


def test_keys_that_the_dataset_lacks_are_named_before_anything_is_read(home):
    cfg = config()
    data_config = cfg.data.create(None, cfg.model)
    structure = {"images": {"x": "observation.images.nose"}, "state": "observation.state", "mood": "observation.mood"}
    data_config = dataclasses.replace(
        data_config, repack_transforms=_transforms.Group(inputs=[_transforms.RepackTransform(structure)])
    )
    with pytest.raises(errors.DataError, match=r"keys \['observation.images.nose', 'observation.mood'\] are missing"):
        datasets.create_dataset(data_config, 50, cfg.model)


def test_a_transform_before_the_repacking_sees_every_key_and_may_make_new_ones(home):
    cfg = config()
    data_config = cfg.data.create(None, cfg.model)
    (repack,) = data_config.repack_transforms.inputs
    structure = {**repack.structure, "state": "twice"}

    def double(sample: dict) -> dict:
        return {**sample, "twice": 2 * sample["observation.state"]}

    inputs = [double, _transforms.RepackTransform(structure)]
    data_config = dataclasses.replace(data_config, repack_transforms=_transforms.Group(inputs=inputs))
    sample = datasets.create_dataset(data_config, 50, cfg.model)[0]
    repacked = inputs[1](inputs[0](sample))
    np.testing.assert_array_equal(repacked["state"], 2 * sample["observation.state"])
    assert repacked["images"].keys() == repack.structure["images"].keys()


def test_a_sample_that_the_robot_transform_refuses_is_named():
    def refuse(sample: dict) -> dict:
        raise ValueError(f"state: found {sample['state']}")

    with pytest.raises(errors.DataError, match="sample 7: state: found"):
        datasets.TransformedDataset(Numbers(10), [refuse])[7]


def test_fake_samples_have_the_shapes_of_the_model_and_repeat():
    model = pi0_config.Pi0Config(action_dim=8, action_horizon=6, max_token_len=5)
    dataset = datasets.FakeDataset(model)
    sample = dataset[3]
    assert sample["actions"].shape == (6, 8)
    assert sample["tokenized_prompt"].dtype == np.int32
    assert not sample["tokenized_prompt_mask"].any()
    assert -1 <= sample["state"].min() < sample["state"].max() <= 1
    assert "token_ar_mask" not in sample
    for a, b in zip(jax.tree.leaves(sample), jax.tree.leaves(dataset[3]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_framework_is_refused():
    with pytest.raises(errors.ConfigError, match="found framework 'pytorch', expected 'jax'"):
        data_loader.create_data_loader(_config.get_config("debug"), framework="pytorch")
