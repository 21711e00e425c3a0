"""Normalisation statistics from columns: exact values, right place, and clear words when something is missing."""

import dataclasses
import json
import pathlib
import runpy
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi.shared import errors
from openpi.shared import normalize
from openpi.training import config as _config
from openpi.training.lerobot import images as lerobot_images
from openpi.training.stats import exact_stats
from openpi.training.stats import norm_stats

SCRIPTS = pathlib.Path(_config.__file__).parents[3] / "scripts"
GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
LENGTHS = (12, 9, 7)
JOINTS = np.array([True] * 6 + [False] + [True] * 6 + [False])


def debug_config(**data_overrides):
    config = _config.get_config("debug_realman")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data_overrides))


def expected_vectors(horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """States (n, 14) and actions (n * horizon, 14) in the model's layout, straight from the dataset's formula."""
    states, actions = [], []
    for episode, length in enumerate(LENGTHS):
        t = np.arange(length)[:, None]
        state, action = (np.sin(0.1 * t + 0.3 * np.arange(14) + episode + kind).astype(np.float32) for kind in (0, 1))
        state, action = (np.roll(x, 7, axis=1) for x in (state, action))  # left arm first
        for frame in range(length):
            window = action[np.minimum(frame + np.arange(horizon), length - 1)]
            states.append(state[frame])
            actions.append(window - np.where(JOINTS, state[frame], 0))
    return np.stack(states), np.concatenate(actions)


def test_statistics_are_those_of_every_window_of_every_frame(home):
    report = norm_stats.compute_norm_stats(debug_config())
    assert report.num_frames == sum(LENGTHS)
    stats = normalize.load(home / "assets/debug_realman/realman/dual_arm")
    for key, vectors in zip(("state", "actions"), expected_vectors(horizon=50), strict=True):
        np.testing.assert_allclose(stats[key].mean, vectors.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(stats[key].std, vectors.std(axis=0, dtype=np.float64), rtol=1e-6)
        for name, q in (("q01", 0.01), ("q99", 0.99)):
            wanted = np.quantile(vectors, q, axis=0, method="inverted_cdf")
            np.testing.assert_allclose(getattr(stats[key], name), wanted, atol=1e-6)


def test_statistics_agree_with_the_running_ones_of_the_original(home):
    """The histogram of the original is allowed one bin, its moments one part in a million."""
    norm_stats.compute_norm_stats(debug_config())
    stats = normalize.load(home / "assets/debug_realman/realman/dual_arm")["actions"]
    vectors = expected_vectors(horizon=50)[1]
    running = normalize.RunningStats()
    running.update(vectors)  # in one batch: its histogram is exact to a bin only while the range does not grow
    wanted = running.get_statistics()
    one_bin = np.ptp(vectors, axis=0) / 5000
    np.testing.assert_allclose(stats.mean, wanted.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats.std, wanted.std, rtol=1e-6)
    assert (np.abs(stats.q01 - wanted.q01) <= one_bin + 1e-6).all()
    assert (np.abs(stats.q99 - wanted.q99) <= one_bin + 1e-6).all()


@pytest.mark.parametrize(("num_blocks", "decimals"), [(1, 9), (3, 9), (40, 9), (40, 2)])
def test_exact_statistics_do_not_depend_on_the_blocks(num_blocks, decimals):
    # An encoder that counts around a large value: float32 sums of squares would lose its deviation entirely.
    # With two decimals hundreds of vectors share each value, those of the quantiles too.
    vectors = (1e4 + np.random.default_rng(0).normal(0, 1e-2, (4321, 3))).round(decimals)
    stats = exact_stats.VectorStats(len(vectors))
    for block in np.array_split(vectors, num_blocks):
        stats.update(block)
    result = exact_stats.combine([stats]).stats
    np.testing.assert_allclose(result.mean, vectors.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.std, vectors.std(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(result.q01, np.quantile(vectors, 0.01, axis=0, method="inverted_cdf"))
    np.testing.assert_array_equal(result.q99, np.quantile(vectors, 0.99, axis=0, method="inverted_cdf"))


def test_exact_statistics_agree_with_the_golden_ones_of_the_original(golden_dir):
    golden = json.loads((golden_dir / "framework.json").read_text())["running_stats"]
    batches = [np.asarray(batch).reshape(-1, 3) for batch in golden["batches"]]
    stats = exact_stats.VectorStats(sum(map(len, batches)))
    for batch in batches:
        stats.update(batch)
    found = exact_stats.combine([stats]).stats
    np.testing.assert_allclose(found.mean, golden["mean"], rtol=1e-6, atol=1e-6)
    # The original's variance is a difference of float32 numbers as large as the mean of squares.
    rounding = np.finfo(np.float32).eps * np.square(np.concatenate(batches)).mean(axis=0)
    assert (np.abs(np.square(found.std) - np.square(golden["std"])) <= rounding).all()
    # The original gives the left edge of a bin, and moves counts to left edges once more when the range grows, as it does here.
    one_bin = np.asarray(golden["range"]) / golden["bins"]
    for name in ("q01", "q99"):
        left_of_exact = getattr(found, name) - golden[f"{name}_histogram"]
        assert ((left_of_exact >= -1e-6) & (left_of_exact <= 2 * one_bin + 1e-6)).all()


def test_no_image_is_read(home, monkeypatch):
    monkeypatch.setattr(lerobot_images.ParquetImages, "read", lambda *_: pytest.fail("an image was read"))
    norm_stats.compute_norm_stats(debug_config())


def test_a_part_of_the_frames_can_be_chosen(home):
    assert norm_stats.compute_norm_stats(debug_config(), max_frames=5).num_frames == 5
    assert norm_stats.compute_norm_stats(debug_config(), max_frames=500).num_frames == sum(LENGTHS)


def test_training_reads_what_was_written_also_under_another_asset_id(home):
    config = debug_config(assets=_config.AssetsConfig(asset_id="towels"))
    report = norm_stats.compute_norm_stats(config)
    assert report.path == home / "assets/debug_realman/towels/norm_stats.json"
    assert config.data.create(config.assets_dirs, config.model).norm_stats is not None


def test_the_script_prints_the_file_it_wrote(home, capsys):
    shutil.move(home / "data/lerobot/realman/dual_arm", home / "data/lerobot/realman/other")
    script = runpy.run_path(str(SCRIPTS / "compute_norm_stats.py"))
    script["main"]("debug_realman", repo_id="realman/other", min_range=0.01, flags=("--model.action-horizon", "20"))
    path = pathlib.Path(capsys.readouterr().out.strip())
    assert path == home / "assets/debug_realman/realman/other/norm_stats.json"
    assert json.loads(path.read_text())["norm_stats"].keys() == {"state", "actions"}


def test_a_missing_dataset_is_named(home):
    with pytest.raises(errors.MissingFileError, match="make convert DATA=<recordings> REPO_ID=realman/none"):
        norm_stats.compute_norm_stats(debug_config(repo_id="realman/none"))


def test_values_that_are_not_finite_leave_older_statistics_alone(home):
    report = norm_stats.compute_norm_stats(debug_config())
    before = report.path.read_bytes()
    path = home / "data/lerobot/realman/dual_arm/data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    index = table.schema.get_field_index("action")
    rows = table.column(index).to_pylist()
    rows[3][2] = float("nan")
    pq.write_table(table.set_column(index, "action", pa.array(rows, table.schema.field(index).type)), path)
    with pytest.raises(errors.DataError, match=r"episode 1, frame 3: .action. \[2\] is not finite \(1 such values\)"):
        norm_stats.compute_norm_stats(debug_config())
    assert report.path.read_bytes() == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_config.get_config("debug"), "no dataset to compute statistics of"),
        (debug_config(assets=_config.AssetsConfig(assets_dir="gs://bucket/assets")), "its statistics come from gs://"),
    ],
)
def test_configs_without_statistics_of_their_own_are_refused(config, message):
    with pytest.raises(errors.ConfigError, match=message):
        norm_stats.compute_norm_stats(config)
