"""Checkpoints: the original's files load, ours have the same layout, and nothing is lost."""

import json
import math
import pathlib
import shutil
import subprocess
import sys

from flax import nnx
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.policies import checkpoint_folder
from openpi.shared import errors
from openpi.shared import nnx_utils
from openpi.shared import normalize
from openpi.training import checkpoints
from openpi.training import sharding
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig
from openpi.training.step import train_state

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
GOLDEN_STEP = 7
ASSET_ID = "realman/demo"


def golden_config(**overrides) -> TrainConfig:
    size = gemma_config.Config(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512)
    fields = json.loads((GOLDEN / "pi0.json").read_text())["config"]
    fields |= {
        "paligemma_variant": size,
        "action_expert_variant": gemma_config.Config(
            width=32, depth=3, mlp_dim=96, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512
        ),
        "vision_variant": "mu/16",
    }
    return TrainConfig(name="golden", exp_name="golden", model=pi0_config.Pi0Config(**fields), **overrides)


def stats() -> dict[str, normalize.NormStats]:
    vector = np.arange(14.0)
    return {
        key: normalize.NormStats(mean=vector, std=vector + 1, q01=-vector, q99=vector) for key in ("state", "actions")
    }


def open_dir(path: pathlib.Path, *, resume: bool = True, overwrite: bool = False):
    return checkpoints.initialize_checkpoint_dir(path, keep_period=None, overwrite=overwrite, resume=resume)


def restore(config: TrainConfig, path: pathlib.Path):
    manager, resuming = open_dir(path)
    assert resuming
    mesh = sharding.make_mesh(1)
    return checkpoints.restore_state(
        manager, train_state.abstract_train_state(config), train_state.state_sharding(config, mesh)
    )


@pytest.fixture(scope="module")
def golden_copy(tmp_path_factory) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(GOLDEN / "pi0_checkpoint", tmp_path_factory.mktemp("golden") / "run"))


@pytest.fixture(scope="module")
def golden_state(golden_copy) -> train_state.TrainState:
    state, loader_state = restore(golden_config(), golden_copy)
    assert loader_state is None  # the original stores no position
    return state


def flat(state: nnx.State) -> dict[str, jax.Array]:
    return flax.traverse_util.flatten_dict(nnx_utils.to_pure_dict(state), sep="/")


def keys_on_disk(item: pathlib.Path) -> dict[str, str]:
    """Return the path and kind of every leaf of an orbax item."""
    tree = json.loads((item / "_METADATA").read_text())["tree_metadata"]
    kinds = {path: entry["value_metadata"]["value_type"] for path, entry in tree.items()}
    if "('step',)" in kinds:
        kinds["('step',)"] = "number"  # the counter of the golden run was never on a device
    return kinds


def test_averaged_parameters_of_the_original_checkpoint_are_read_leaf_by_leaf(golden_state):
    wanted = json.loads((GOLDEN / "pi0_checkpoint_ema_sums.json").read_text())
    averaged = flat(golden_state.ema_params)
    assert averaged.keys() == wanted.keys()
    for path, (total, absolute) in wanted.items():
        leaf = np.asarray(averaged[path], np.float64)
        np.testing.assert_allclose([leaf.sum(), np.abs(leaf).sum()], [total, absolute], rtol=1e-6, atol=1e-6 * absolute)


def test_raw_parameters_and_optimizer_of_the_original_checkpoint_are_read(golden_state):
    assert golden_state.step.dtype == jnp.int32
    raw, averaged = flat(golden_state.params), flat(golden_state.ema_params)
    assert any(not np.array_equal(raw[path], averaged[path]) for path in raw)
    adam = golden_state.opt_state[1][0]
    assert flat(adam.mu).keys() == flat(adam.nu).keys() == raw.keys()
    assert all(leaf.shape == raw[path].shape for path, leaf in flat(adam.nu).items())


def test_a_saved_checkpoint_has_the_layout_of_the_original(golden_state, golden_copy, tmp_path):
    manager, resuming = open_dir(tmp_path / "run")
    assert not resuming
    data_config = DataConfig(asset_id=ASSET_ID, norm_stats=stats(), norm_stats_provenance={"action_horizon": 6})
    loader = {"position": 0, "seed": 42}
    checkpoints.save_state(manager, golden_state, data_config, loader, GOLDEN_STEP, rtc_max_delay=10)
    manager.wait_until_finished()
    ours, theirs = tmp_path / "run" / str(GOLDEN_STEP), golden_copy / str(GOLDEN_STEP)
    assert {path.name for path in ours.iterdir() if path.is_dir()} == {"assets", "params", "train_state"}
    for item in ("params", "train_state"):
        assert keys_on_disk(ours / item) == keys_on_disk(theirs / item)
        assert (ours / item / "manifest.ocdbt").is_file()
    assert (ours / "assets" / ASSET_ID / "norm_stats.json").is_file()
    # This project adds the provenance of the statistics.
    assert normalize.load_provenance(ours / "assets" / ASSET_ID)["action_horizon"] == 6
    handlers = json.loads((ours / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
    assert handlers.keys() == {"assets", "params", "train_state"}
    assert checkpoint_folder.rtc_max_delay(ours) == 10
    assert checkpoint_folder.rtc_max_delay(theirs) is None


@pytest.mark.parametrize("with_average", [True, False])
def test_a_state_comes_back_bit_for_bit_with_the_loader_position(golden_state, tmp_path, with_average):
    state = golden_state.replace(step=jnp.int32(12))
    if not with_average:
        state = state.replace(ema_params=None)
    config = golden_config(ema_decay=0.99 if with_average else None)
    manager, _ = open_dir(tmp_path / "run")
    checkpoints.save_state(manager, state, DataConfig(), {"position": 96, "seed": 5}, 11)
    manager.wait_until_finished()
    assert not list((tmp_path / "run" / "11" / "assets").rglob("norm_stats.json"))

    restored, loader_state = restore(config, tmp_path / "run")
    assert loader_state == {"position": 96, "seed": 5}
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_served_parameters_are_the_averaged_ones(golden_copy, golden_state):
    served = _model.restore_params(golden_copy / str(GOLDEN_STEP) / "params", restore_type=np.ndarray)
    for path, leaf in flax.traverse_util.flatten_dict(served, sep="/").items():
        np.testing.assert_array_equal(leaf, flat(golden_state.ema_params)[path])


def test_an_existing_folder_is_left_alone_without_a_flag(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(checkpoints.CheckpointExistsError, match=r"--resume.*--overwrite.*--exp-name"):
        open_dir(tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_overwrite_starts_with_an_empty_folder(tmp_path):
    (tmp_path / "run" / "3").mkdir(parents=True)
    _, resuming = open_dir(tmp_path / "run", resume=False, overwrite=True)
    assert not resuming
    assert not (tmp_path / "run" / "3").exists()


def test_resume_without_a_checkpoint_starts_afresh(tmp_path, caplog):
    _, resuming = open_dir(tmp_path / "run")
    assert not resuming
    assert "no checkpoint to resume from" in caplog.text


def test_a_checkpoint_of_another_model_is_refused_in_one_line(golden_copy):
    config = golden_config()
    other = pi0_config.Pi0Config(
        **{field: getattr(config.model, field) for field in ("dtype", "paligemma_variant", "action_expert_variant")},
        vision_variant="mu/16",
        action_dim=20,
    )
    with pytest.raises(checkpoints.errors.DataError, match="does not fit this config"):
        restore(TrainConfig(name="x", exp_name="x", model=other), golden_copy)


def cut_off(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("fault", ["no params", "no train_state", "data cut off", "metadata cut off"])
def test_a_damaged_checkpoint_is_named_with_the_previous_one(tmp_path, fault):
    run = pathlib.Path(shutil.copytree(GOLDEN / "pi0_checkpoint", tmp_path / "run"))
    step, before = run / str(GOLDEN_STEP), run / str(GOLDEN_STEP - 1)
    shutil.copytree(step, before)
    if fault.startswith("no "):
        shutil.rmtree(step / fault.removeprefix("no "))
    elif fault == "metadata cut off":
        cut_off(step / "train_state/_METADATA")
    else:
        for path in (step / "train_state/d").iterdir():
            cut_off(path)
    words = rf"{step}: the checkpoint is damaged \(.+\)\. Move it away to resume at step {GOLDEN_STEP - 1}"
    with pytest.raises(errors.DataError, match=words):
        restore(golden_config(), run)
    shutil.rmtree(before)
    with pytest.raises(errors.DataError, match="Copy it here again, or start a run with another --exp-name"):
        restore(golden_config(), run)


def test_truncated_arrays_are_reported_in_one_line(tmp_path):
    """Run in a separate process, which prints at its end what other reads of the same file found."""
    shutil.copytree(GOLDEN / "pi0_checkpoint" / str(GOLDEN_STEP) / "params", tmp_path / "params")
    for path in tmp_path.rglob("d/*"):
        if path.stat().st_size > 10_000:
            cut_off(path)
    code = (
        "import logging\nlogging.getLogger('absl').setLevel(logging.WARNING)\n"
        "from openpi.models.checkpoint_params import restore_params\nfrom openpi.shared import cli\n"
        f"cli.run(lambda _: restore_params({str(tmp_path / 'params')!r}), lambda: None)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/params: cannot read parameters (")
    assert line.endswith("Copy it again or use another")


NONE = checkpoints.NO_SCORE
NAN, INF = math.nan, math.inf


def save_scores(path: pathlib.Path, state, scores: list[float], *, keep_period: int | None = None, first: int = 0):
    """Save a checkpoint with each score, and return the steps that are left and the best one."""
    manager, _ = checkpoints.initialize_checkpoint_dir(
        path, keep_period=keep_period, overwrite=False, resume=True, keep_best=True
    )
    for step, score in enumerate(scores, first):
        checkpoints.save_state(manager, state, DataConfig(), {"position": 0, "seed": 0}, step, score=score)
        manager.wait_until_finished()
        checkpoints.point_to_best(manager)
    manager.close()
    link = path / "best"
    best = int(link.readlink().name) if link.is_symlink() else None
    return {int(each.name) for each in path.iterdir() if each.name.isdecimal()}, best


@pytest.mark.parametrize(
    ("scores", "keep_period", "kept", "best"),
    [
        pytest.param([1.0, 0.5, NAN, 0.7], None, {1, 3}, 1, id="NaN after the best one"),
        pytest.param([NAN, 0.5, 0.7], None, {1, 2}, 1, id="NaN before the best one"),
        pytest.param([0.5, INF, 0.7, NAN], None, {0, 3}, 0, id="infinite"),
        pytest.param([0.5, -INF, 0.7], None, {0, 2}, 0, id="negative infinite"),
        pytest.param([NAN, NAN, NAN], None, {1, 2}, None, id="only NaN"),
        pytest.param([NONE, 0.5, NONE, 2 * NONE], None, {1, 3}, 1, id="no score"),
        pytest.param([0.5, 0.5, 0.7, 0.8], None, {1, 3}, 1, id="equal scores"),
        pytest.param([0.5, 0.4, NAN, 0.7, 0.9], 2, {0, 1, 2, 4}, 1, id="kept forever"),
        pytest.param([0.5, NAN, 0.4], None, {0, 2}, 2, id="the newest is the best one"),
    ],
)
def test_the_best_checkpoint_survives_scores_that_say_nothing(tmp_path, scores, keep_period, kept, best):
    state = {"x": jnp.zeros(2)}
    at_once, resumed = tmp_path / "at_once", tmp_path / "resumed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.checkpoint_tree, "to_disk", lambda state: (state, state))
        assert save_scores(at_once, state, scores, keep_period=keep_period) == (kept, best)
        for step, score in enumerate(scores):
            left = save_scores(resumed, state, [score], keep_period=keep_period, first=step)
    assert left == (kept, best)
    # What is stored can be read by any JSON parser.
    stored = [json.loads((at_once / str(step) / "metrics/metrics").read_text())["score"] for step in sorted(kept)]
    assert all(map(math.isfinite, stored))


@pytest.mark.parametrize(
    "stored", ['{"score": NaN, "step": 1}', '{"score": -Infinity, "step": 1}', "{}", '{"loss": 3}']
)
def test_the_best_checkpoint_survives_a_score_that_an_older_version_stored(tmp_path, monkeypatch, stored):
    monkeypatch.setattr(checkpoints.checkpoint_tree, "to_disk", lambda state: (state, state))
    state = {"x": jnp.zeros(2)}
    assert save_scores(tmp_path / "run", state, [0.5, 0.9]) == ({0, 1}, 0)
    (tmp_path / "run/1/metrics/metrics").write_text(stored)
    assert save_scores(tmp_path / "run", state, [0.7], first=2) == ({0, 2}, 0)
