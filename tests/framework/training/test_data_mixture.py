"""Mixtures: what a user types, and that the order of samples has the shares, the determinism and the resume of one dataset."""

import numpy as np
import pytest

from openpi.shared import errors
from openpi.training import config as _config
from openpi.training.configs import mixture
from openpi.training.configs.mixture import MixedDataset
from openpi.training.samples.sampling import MixtureOrder

ORDER = MixtureOrder(lengths=(100, 37, 1000), shares=(0.5, 0.3, 0.2), shuffle=True, seed=5)


def test_a_mixture_is_typed_as_words():
    flags = ("--data.mixture", "realman/towels:2", "realman/cubes::pick: the red one", "realman/rest")
    data = _config.with_flags(_config.get_config("debug_realman"), flags).data
    assert data.mixture == (
        MixedDataset("realman/towels", 2.0),
        MixedDataset("realman/cubes", None, "pick: the red one"),
        MixedDataset("realman/rest"),
    )
    assert [MixedDataset.parse(str(member)) for member in data.mixture] == list(data.mixture)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("realman/a:0", r"mixture 'realman/a:0'\.weight: found 0, expected 1e-09 to "),
        ("realman/a:-1", r"weight: found -1, expected"),
        ("realman/a:nan", r"weight: found nan, expected"),
        ("realman/a:much", r"found 'realman/a:much', expected REPO_ID\[:WEIGHT\[:PROMPT\]\] with a number as weight"),
        (":2", r"found ':2', expected REPO_ID"),
    ],
)
def test_words_that_are_no_dataset_are_refused(text, message):
    with pytest.raises(errors.OutOfRangeError, match=message):
        MixedDataset.parse(text)


def test_shares_follow_the_weights_or_else_the_frames():
    a, b = MixedDataset("a"), MixedDataset("b")
    assert mixture.shares([a, b], [300, 100]) == [0.75, 0.25]
    assert mixture.shares([MixedDataset("a", 1), MixedDataset("b", 3)], [300, 100]) == [0.25, 0.75]
    with pytest.raises(errors.ConfigError, match="Give one to each, or none"):
        mixture.shares([a, MixedDataset("b", 3)], [300, 100])
    with pytest.raises(errors.ConfigError, match=r"\['a'\] are named twice"):
        mixture.shares([a, a], [300, 100])
    with pytest.raises(errors.ConfigError, match=r"\['b'\] would be less than 0.2% of the samples"):
        mixture.shares([a, b], [300_000, 100])


def test_the_order_of_a_mixture_is_a_pure_function_of_the_position():
    whole = ORDER.take(0, 6000)
    for start, count in ((0, 0), (3, 5), (2040, 30), (4095, 1905)):
        np.testing.assert_array_equal(ORDER.take(start, count), whole[start : start + count])
    other_seed = MixtureOrder(ORDER.lengths, ORDER.shares, shuffle=True, seed=6)
    assert not np.array_equal(other_seed.take(0, 100), whole[:100])


def test_each_dataset_has_its_share_in_any_long_stretch():
    taken = ORDER.take(0, 2048 * 3)
    counts = np.histogram(taken, [0, 100, 137, 1137])[0]
    np.testing.assert_allclose(counts, np.array(ORDER.shares) * len(taken), atol=1)
    # Not in runs: every dataset is in every few batches.
    assert all(len(np.unique(np.digitize(batch, [100, 137]))) == 3 for batch in taken.reshape(-1, 64))


def test_every_frame_of_a_dataset_comes_once_before_any_comes_again():
    taken = ORDER.take(0, 20_000)
    first = 0
    for length in ORDER.lengths:
        own = taken[(taken >= first) & (taken < first + length)] - first
        epochs = own[: len(own) // length * length].reshape(-1, length)
        assert len(epochs) >= 2
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert not np.array_equal(epochs[0], epochs[1])
        first += length
