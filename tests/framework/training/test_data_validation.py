"""Validation: which episodes are kept out of training, and that their batches are always the same."""

import dataclasses

import numpy as np
import pytest

from openpi.shared import errors
from openpi.training import config as _config
from openpi.training import data_loader
from openpi.training.configs.validation_split import ValidationSplit
from openpi.training.samples import datasets
from openpi.training.stats import norm_stats

LENGTHS = (12, 9, 7)


def config(**split):
    base = _config.get_config("debug_realman")
    data = dataclasses.replace(base.data, validation=ValidationSplit(**split))
    return dataclasses.replace(base, data=data, batch_size=4)


def episodes_of(cfg, part) -> list[int]:
    dataset = datasets.create_dataset(cfg.data.create(None, cfg.model), 50, cfg.model, part=part)
    return [int(dataset[i]["episode_index"]) for i in range(len(dataset))]


def states(loader) -> np.ndarray:
    return np.concatenate([np.asarray(observation.state) for observation, _ in loader])


def test_frames_are_trained_on_or_kept_out_episode_by_episode(home):
    cfg = config(episodes=(1,))
    assert episodes_of(cfg, "train") == [0] * 12 + [2] * 7
    assert episodes_of(cfg, "validation") == [1] * 9
    assert len(episodes_of(cfg, "all")) == sum(LENGTHS)


def test_a_share_is_drawn_by_its_own_seed_and_hardly_changes_when_a_dataset_grows():
    split = ValidationSplit(fraction=0.1)
    chosen = split.choose(range(100), "x")
    assert len(chosen) == 10
    assert chosen == ValidationSplit(fraction=0.1).choose(range(100), "x")
    assert chosen != ValidationSplit(fraction=0.1, seed=1).choose(range(100), "x")
    grown = split.choose(range(110), "x")
    assert len(grown) == 11
    assert len(chosen & grown) >= 8


def test_a_share_keeps_at_least_one_episode_out_and_nothing_is_kept_out_by_default(home):
    assert len(ValidationSplit(fraction=0.01).choose(range(5), "x")) == 1
    assert ValidationSplit().choose(range(5), "x") == frozenset()
    assert data_loader.create_validation_loader(config()) is None
    assert data_loader.create_validation_loader(_config.get_config("debug")) is None


def test_every_iteration_gives_the_same_batches_whatever_the_seed_of_training(home):
    cfg = config(fraction=0.3)
    norm_stats.compute_norm_stats(cfg)
    loader = data_loader.create_validation_loader(cfg)
    first = states(loader)
    (kept_out,) = cfg.data.validation.choose(range(3), "x")
    # One pass, filled up to whole batches.
    assert len(first) == loader.num_batches * 4 == -(-LENGTHS[kept_out] // 4) * 4
    assert len(np.unique(first, axis=0)) == LENGTHS[kept_out] == loader.num_samples
    np.testing.assert_array_equal(states(loader), first)
    other = data_loader.create_validation_loader(dataclasses.replace(cfg, seed=7), num_batches=1)
    np.testing.assert_array_equal(states(other), first[:4])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"fraction": 1.0}, r"data\.validation\.fraction: found 1, expected 0 to 0\.999"),
        ({"fraction": 0.5, "episodes": (1,)}, "exclude each other"),
        ({"episodes": (1, 7, 9)}, r"dataset 'realman/dual_arm': no episodes \[7, 9\] .*found 0 to 2"),
        ({"episodes": (0, 1, 2)}, "validation takes 3 of 3 episodes, none is left to train on"),
    ],
)
def test_splits_that_cannot_be_are_refused(home, split, message):
    with pytest.raises(errors.UserError, match=message):
        episodes_of(config(**split), "train")
