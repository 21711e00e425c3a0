import json
import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from openpi.shared import errors
from openpi.shared import normalize

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "framework.json").read_text())["running_stats"]


def running(batches):
    stats = normalize.RunningStats()
    for batch in batches:
        stats.update(batch)
    return stats.get_statistics()


def test_running_stats_agree_with_the_golden_numbers():
    batches = [np.asarray(batch) for batch in GOLDEN["batches"]]
    stats = running(batches)
    vectors = np.concatenate([batch.reshape(-1, 3) for batch in batches])

    np.testing.assert_allclose(stats.mean, GOLDEN["mean"], rtol=0, atol=1e-6)
    for i, one_bin in enumerate(np.asarray(GOLDEN["range"]) / GOLDEN["bins"]):
        np.testing.assert_allclose(stats.q01[i], GOLDEN["q01_histogram"][i], rtol=0, atol=one_bin + 1e-6)
        np.testing.assert_allclose(stats.q99[i], GOLDEN["q99_histogram"][i], rtol=0, atol=one_bin + 1e-6)
    # The golden std is sqrt(E[x^2]-E[x]^2) in float32, so its variance is rounded to a float32 of E[x^2]. Ours is not.
    np.testing.assert_allclose(stats.std, vectors.std(axis=0), rtol=1e-12)
    rounding = np.finfo(np.float32).eps * np.square(vectors).mean(axis=0)
    assert (np.abs(np.square(stats.std) - np.square(GOLDEN["std"])) <= rounding).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 60), st.sampled_from([0.0, 1000.0, -1e6]))
def test_running_stats_do_not_depend_on_how_vectors_are_batched(seed, num_vectors, batch_size, offset):
    vectors = offset + np.random.default_rng(seed).normal(size=(num_vectors, 3))
    stats = running([vectors[i : i + batch_size] for i in range(0, num_vectors, batch_size)])
    np.testing.assert_allclose(stats.mean, vectors.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(stats.std, vectors.std(axis=0), rtol=1e-6)


def test_a_small_deviation_far_from_zero_is_not_lost():
    # In float32 sums of squares the deviation of these numbers is 0.
    vectors = 1000.0 + 0.01 * np.sin(np.arange(600.0)).reshape(-1, 1)
    np.testing.assert_allclose(running(np.split(vectors, 6)).std, vectors.std(axis=0), rtol=1e-9)


@pytest.mark.parametrize("trend", [0.0, 1.0, -1.0])
def test_quantiles_stay_within_two_bins_when_the_range_grows_with_every_vector(trend):
    vectors = trend * np.arange(2000.0).reshape(-1, 1) + np.random.default_rng(0).normal(size=(2000, 1))
    stats = running(list(vectors))
    two_bins = 2 * np.ptp(vectors) / 5000
    # Between two neighboring vectors, any number is a quantile.
    ordered = np.sort(vectors[:, 0])
    for got, share in ((stats.q01[0], 0.01), (stats.q99[0], 0.99)):
        rank = int(np.ceil(share * len(ordered)))
        assert ordered[rank - 1] - two_bins <= got <= ordered[min(rank, len(ordered) - 1)] + two_bins


def test_no_count_is_lost_when_bins_move():
    # Former defect: vectors at the minimum fell out of the histogram when its range grew, and quantiles moved.
    stats = running([np.zeros((50, 1)), np.ones((50, 1)), np.full((900, 1), 2.0)])
    assert stats.q01[0] == 0.0
    assert stats.q99[0] == pytest.approx(2.0, abs=2.0 / 5000)


def test_batch_axes_are_flattened():
    batch = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_allclose(running([batch]).mean, batch.reshape(-1, 4).mean(axis=0))


def test_constant_numbers_have_no_deviation_and_their_value_as_quantiles():
    stats = running([np.full((3, 2), 7.0), np.full((1, 2), 7.0)])
    np.testing.assert_array_equal(stats.std, 0.0)
    np.testing.assert_array_equal(stats.q01, 7.0)
    np.testing.assert_array_equal(stats.q99, 7.0)


def test_running_stats_refuse_bad_vectors():
    stats = normalize.RunningStats()
    stats.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="found 1 vectors, expected at least 2"):
        stats.get_statistics()
    with pytest.raises(ValueError, match="found vectors of 4 numbers, expected 3"):
        stats.update(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="1 numbers are not finite"):
        stats.update(np.array([[0.0, np.nan, 0.0]]))
    stats.update(np.zeros((0, 3)))
    stats.update(np.ones((1, 3)))
    np.testing.assert_array_equal(stats.get_statistics().mean, 0.5)


def test_saved_stats_come_back_exactly_and_replace_old_ones(tmp_path):
    stats = {
        "state": normalize.NormStats(mean=np.array([0.1, -2.0]), std=np.array([1e-7, 3.0])),
        "actions": running([np.random.default_rng(0).normal(size=(9, 2))]),
    }
    normalize.save(tmp_path / "new" / "folder", {"state": stats["actions"]})
    normalize.save(tmp_path / "new" / "folder", stats)
    loaded = normalize.load(tmp_path / "new" / "folder")
    assert loaded.keys() == stats.keys()
    assert loaded["state"].q01 is None
    for key in stats:
        np.testing.assert_array_equal(loaded[key].mean, stats[key].mean)
        np.testing.assert_array_equal(loaded[key].std, stats[key].std)
    np.testing.assert_array_equal(loaded["actions"].q99, stats["actions"].q99)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["norm_stats.json"]


def test_the_file_has_the_layout_that_openpi_reads(tmp_path):
    stats = normalize.NormStats(mean=np.array([0.5]), std=np.array([2.0], np.float32))
    normalize.save(tmp_path, {"state": stats})
    content = json.loads((tmp_path / "norm_stats.json").read_text())
    assert content == {"norm_stats": {"state": {"mean": [0.5], "std": [2.0], "q01": None, "q99": None}}}
    assert normalize.serialize_json({"state": stats}).startswith(
        '{\n  "norm_stats": {\n    "state": {\n      "mean": [\n'
    )


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no norm stats here"):
        normalize.load(tmp_path)
    (tmp_path / "norm_stats.json").write_text('{"norm_stats": {"state": {"mean": [1]}}}')
    with pytest.raises(errors.DataError, match=r"norm_stats\.json: norm stats: not the expected JSON"):
        normalize.load(tmp_path)
    (tmp_path / "norm_stats.json").write_text("half a fi")
    with pytest.raises(errors.DataError, match="not the expected JSON"):
        normalize.load(tmp_path)
    (tmp_path / "norm_stats.json").write_bytes(b'{"norm_stats": "\xff"}')
    with pytest.raises(
        errors.DataError, match=r"norm_stats\.json: norm stats: not the expected JSON .*Compute them again"
    ):
        normalize.load(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ('{"mean": [0, 1], "std": [1]}', r"'state' std is int64 \[1\], expected numbers \[2\]"),
        ('{"mean": ["a"], "std": [1]}', r"'state' mean is <U1 \[1\], expected numbers \[1\]"),
        ('{"mean": 1, "std": 1}', r"'state' mean is int64 \[\], expected numbers \[\*\]"),
        ('{"mean": null, "std": [1]}', "'state' mean is missing"),
        ('{"mean": [0], "std": [NaN]}', "'state' std has 1 numbers that are not finite"),
        ('{"mean": [0], "std": [1], "q01": [0, 0], "q99": [1]}', r"'state' q01 is int64 \[2\], expected numbers \[1\]"),
    ],
)
def test_statistics_other_than_vectors_of_one_width_are_refused_by_key_and_field(tmp_path, state, message):
    (tmp_path / "norm_stats.json").write_text(f'{{"norm_stats": {{"state": {state}}}}}')
    with pytest.raises(errors.DataError, match=rf"norm_stats\.json: norm stats: {message}.*Compute them again$"):
        normalize.load(tmp_path)


def test_a_file_without_statistics_is_refused(tmp_path):
    (tmp_path / "norm_stats.json").write_text('{"norm_stats": {}}')
    with pytest.raises(errors.DataError, match=r"found none\. Compute them again"):
        normalize.load(tmp_path)


def test_stats_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(errors.DataError, match="not finite"):
        normalize.save(tmp_path, {"state": normalize.NormStats(mean=np.array([np.nan]), std=np.array([1.0]))})
    assert not (tmp_path / "norm_stats.json").exists()
