"""Statistics know their data: training refuses those of other data, and says how to get the right ones."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi.shared import errors
from openpi.shared import normalize
from openpi.training import config as _config
from openpi.training import data_loader
from openpi.training.configs.data_config import AssetsConfig
from openpi.training.configs.mixture import MixedDataset
from openpi.training.samples import datasets
from openpi.training.stats import exact_stats
from openpi.training.stats import norm_stats
from openpi.training.stats import norm_stats_report
import openpi.transforms as _transforms


def config(**data_overrides):
    base = _config.get_config("debug_realman")
    return dataclasses.replace(base, batch_size=4, data=dataclasses.replace(base.data, **data_overrides))


def with_horizon(cfg, horizon: int):
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, action_horizon=horizon))


def refusal(cfg) -> str:
    with pytest.raises(errors.DataError) as info:
        data_loader.create_data_loader(cfg)
    message = str(info.value)
    assert "norm_stats.json: does not belong to this training: " in message
    return message


def edit_info(home: pathlib.Path, **changes) -> None:
    path = home / "data/lerobot/realman/dual_arm/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_names(home: pathlib.Path, change) -> None:
    """Change the names of states and actions in info.json."""
    path = home / "data/lerobot/realman/dual_arm/meta/info.json"
    features = json.loads(path.read_text())["features"]
    for key in ("observation.state", "action"):
        features[key]["names"] = change(features[key]["names"])
    edit_info(home, features=features)


def left_first(names):
    (flat,) = names
    return {"motors": flat[7:] + flat[:7]}


def set_column(path: pathlib.Path, name: str, values: np.ndarray) -> None:
    table = pq.read_table(path)
    column = table.schema.get_field_index(name)
    values = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])
    pq.write_table(table.set_column(column, name, values), path)


def copy_dataset(home: pathlib.Path, name: str, *, scale: float = 1.0) -> None:
    """Another dataset with the same images; its numbers are scaled."""
    root = home / "data/lerobot/realman" / name
    shutil.copytree(home / "data/lerobot/realman/dual_arm", root)
    for path in sorted(root.glob("data/*/*.parquet")):
        for key in ("observation.state", "action"):
            set_column(path, key, scale * np.array(pq.read_table(path)[key].to_pylist()))


@pytest.fixture
def computed(home) -> pathlib.Path:
    """A folder to work in, with statistics of its dataset."""
    norm_stats.compute_norm_stats(config())
    return home


def test_provenance_lies_beside_the_statistics_and_says_what_they_are_of(computed):
    folder = computed / "assets/debug_realman/realman/dual_arm"
    assert json.loads((folder / "norm_stats.json").read_text()).keys() == {"norm_stats"}  # as the original reads it
    found = normalize.load_provenance(folder)
    (dataset,) = found["datasets"]
    assert (dataset["repo_id"], dataset["episodes"], dataset["frames"], dataset["fps"]) == (
        "realman/dual_arm",
        3,
        28,
        50,
    )
    assert dataset["columns"] == {"action": [14], "observation.state": [14]}
    assert found["action_horizon"] == 50
    assert any("DeltaActions" in text for text in found["transforms"])
    assert found["date"] > "2026"


def test_statistics_of_this_data_are_taken_whatever_cameras_prompts_and_split(computed, caplog):
    data_loader.create_data_loader(config())
    data_loader.create_data_loader(config(base_camera="cam_low"))
    split = dataclasses.replace(config().data.validation, fraction=0.3)
    data_loader.create_data_loader(config(validation=split, default_prompt="tidy up"))
    assert not [record for record in caplog.records if "norm" in record.message]


def test_another_horizon_arm_order_or_delta_mask_is_refused_with_the_command_that_fixes_it(computed):
    message = refusal(with_horizon(config(), 20))
    assert "they have an action horizon of 50 frames, training has 20" in message
    command = "make norm-stats CONFIG=debug_realman REPO_ID=realman/dual_arm"
    assert f'{command} ARGS="--model.action-horizon 20"' in message
    edit_names(computed, lambda names: None)  # else the names alone refuse it
    message = refusal(config(arm_order="left_right"))
    assert "arm_order='right_left'" in message
    assert "training has RealmanInputs(" in message
    assert f'{command} ARGS="--data.arm-order left_right"' in message
    message = refusal(config(use_delta_joint_actions=False))
    assert "computed with DeltaActions(" in message
    assert f'{command} ARGS="--data.no-use-delta-joint-actions"' in message


def test_the_command_that_a_refusal_names_fixes_it(computed):
    edit_names(computed, lambda names: None)
    cfg = with_horizon(config(arm_order="left_right"), 20)
    refusal(cfg)
    flags = ("--model.action-horizon", "20", "--data.arm-order", "left_right")
    norm_stats.compute_norm_stats(_config.with_flags(_config.get_config("debug_realman"), flags))
    data_loader.create_data_loader(cfg)


def test_names_that_contradict_the_default_order_are_refused_with_the_flag_that_works(home):
    edit_names(home, left_first)
    for act in (norm_stats.compute_norm_stats, lambda cfg: data_loader.create_data_loader(cfg, skip_norm_stats=True)):
        with pytest.raises(errors.DataError) as info:
            act(config())
        text = "put the left arm first, the config expects the right arm. Give --data.arm-order left_right"
        assert str(info.value).endswith(f"meta/info.json: the names of the numbers {text}")
    right = _config.with_flags(_config.get_config("debug_realman"), ("--data.arm-order", "left_right"))
    norm_stats.compute_norm_stats(right)
    data_loader.create_data_loader(dataclasses.replace(right, batch_size=4))


def test_an_order_that_you_give_overrules_the_names_and_is_said_once(home, caplog):
    given = config(arm_order="left_right")
    norm_stats.compute_norm_stats(given)
    data_loader.create_data_loader(dataclasses.replace(given, batch_size=4))
    assert caplog.text.count("put the right arm first, and arm_order 'left_right' overrules them") == 1
    # The remedy for names that are right: without the flag nothing is said.
    caplog.clear()
    norm_stats.compute_norm_stats(config())
    assert "overrules" not in caplog.text


@pytest.mark.parametrize("names", [None, [], ["joint"], list("xyzrpygxyzrpyg"), [None] * 14])
def test_names_that_do_not_tell_the_arms_are_said_once(home, caplog, names):
    edit_names(home, lambda _: names)
    for order in ("right_left", "left_right"):
        norm_stats.compute_norm_stats(config(arm_order=order))
        data_loader.create_data_loader(config(arm_order=order), skip_norm_stats=True)
        assert caplog.text.count(f"so arm_order '{order}' is assumed") == 1


def test_states_and_actions_that_disagree_are_refused_with_a_remedy_that_works(home):
    edit_names(home, left_first)
    path = home / "data/lerobot/realman/dual_arm/meta/info.json"
    features = json.loads(path.read_text())["features"]
    features["action"]["names"] = list(reversed(features["action"]["names"]["motors"]))
    edit_info(home, features=features)
    with pytest.raises(errors.DataError, match=r"another arm first in 'state' than in 'actions'. Correct the names"):
        norm_stats.compute_norm_stats(config())
    features["action"]["names"] = features["observation.state"]["names"]
    edit_info(home, features=features)
    norm_stats.compute_norm_stats(config(arm_order="left_right"))


def test_statistics_of_another_dataset_are_refused_and_both_are_named(computed):
    copy_dataset(computed, "other", scale=2.0)
    assets = AssetsConfig(asset_id="realman/dual_arm")
    message = refusal(config(repo_id="realman/other", assets=assets))
    assert "belong to 'realman/dual_arm' (3 episodes, 28 frames), training reads 'realman/other'" in message
    assert 'REPO_ID=realman/other ARGS="--data.assets.asset-id realman/dual_arm"' in message
    copy_dataset(computed, "renamed")  # the same numbers under another name
    data_loader.create_data_loader(config(repo_id="realman/renamed", assets=assets))


def test_a_dataset_that_has_changed_is_refused(computed):
    path = computed / "data/lerobot/realman/dual_arm/data/chunk-000/episode_000001.parquet"
    actions = np.array(pq.read_table(path)["action"].to_pylist())
    actions[3, 2] += 0.01
    set_column(path, "action", actions)
    assert "'realman/dual_arm' has changed since (other states or actions)" in refusal(config())


def test_a_changed_rate_is_refused(computed):
    root = computed / "data/lerobot/realman/dual_arm"
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        column = table.schema.get_field_index("timestamp")
        slower = pa.array(np.arange(len(table)) / 25, pa.float32())
        pq.write_table(table.set_column(column, "timestamp", slower), path)
    edit_info(computed, fps=25)
    assert "has changed since (fps was 50, now 25)" in refusal(config())


def test_a_changed_number_of_dimensions_is_refused(computed):
    root = computed / "data/lerobot/realman/dual_arm"
    for path in root.glob("data/*/*.parquet"):
        set_column(path, "action", np.array(pq.read_table(path)["action"].to_pylist())[:, :13])
    with pytest.raises(errors.DataError, match=r"'action': found 156 values in 12 frames, expected shape \(14,\) each"):
        data_loader.create_data_loader(config())
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"] |= {"shape": [13], "names": None}
    edit_info(computed, features=info["features"])
    with pytest.raises(
        errors.DataError,
        match=r"dataset .realman/dual_arm.: actions: found float32 \[2, 13\], expected numbers \['horizon', 14\]",
    ):
        data_loader.create_data_loader(config())


def test_statistics_without_provenance_are_taken_with_a_warning(computed, caplog):
    (computed / "assets/debug_realman/realman/dual_arm/norm_stats.provenance.json").unlink()
    data_loader.create_data_loader(config())
    assert "the data of these norm stats is unknown" in caplog.text
    assert "make norm-stats CONFIG=debug_realman" in caplog.text


def test_statistics_edited_by_hand_are_taken_with_a_warning(computed, caplog):
    path = computed / "assets/debug_realman/realman/dual_arm/norm_stats.json"
    path.write_text(path.read_text().replace("0.", "0.1", 1))
    data_loader.create_data_loader(config())
    assert "changed after it was computed" in caplog.text


def test_statistics_that_a_config_fetches_from_elsewhere_need_only_fit_the_transforms(computed, caplog):
    copy_dataset(computed, "other", scale=2.0)
    assets = AssetsConfig(assets_dir=str(computed / "assets/debug_realman"), asset_id="realman/dual_arm")
    data_loader.create_data_loader(config(repo_id="realman/other", assets=assets))
    assert "norm stats of other data, as the config asks for" in caplog.text
    edit_names(computed, lambda names: None)
    shutil.copy(*(computed / f"data/lerobot/realman/{name}/meta/info.json" for name in ("dual_arm", "other")))
    assert "arm_order" in refusal(config(repo_id="realman/other", assets=assets, arm_order="left_right"))


def test_a_floor_widens_narrow_dimensions_and_is_recorded(home, capsys):
    root = home / "data/lerobot/realman/dual_arm"
    for path in root.glob("data/*/*.parquet"):
        for key in ("observation.state", "action"):
            vectors = np.array(pq.read_table(path)[key].to_pylist())
            vectors[:, 1], vectors[:, 6] = 0.7, 0.5 + 1e-4 * vectors[:, 6]
            set_column(path, key, vectors)
    plain = norm_stats.compute_norm_stats(config())
    assert norm_stats_report.findings(plain.distributions["state"])[7:] == ["", "constant", *[""] * 4, "tiny range"]
    (state, actions) = norm_stats_report.advice(plain)
    assert "state: right_shoulder (constant), right_gripper (tiny range)" in state
    assert "right_gripper (tiny range)" in actions

    report = norm_stats.compute_norm_stats(config(), min_range=0.2)
    stats, before = report.stats["state"], plain.stats["state"]
    np.testing.assert_allclose([stats.q01[8], stats.q99[8]], [0.6, 0.8], atol=1e-6)
    np.testing.assert_allclose((stats.q01 + stats.q99)[13], (before.q01 + before.q99)[13])
    assert (stats.q99 - stats.q01 >= 0.2 - 1e-9).all()
    np.testing.assert_allclose(stats.std[[8, 13]], 0.2 / 4.653)
    untouched = [dim for dim in range(14) if dim not in (8, 13)]
    np.testing.assert_array_equal(stats.q01[untouched], before.q01[untouched])
    assert normalize.load_provenance(report.path.parent)["min_range"] == 0.2
    assert not norm_stats_report.advice(report)


def test_the_report_names_the_robots_joints_in_the_models_order(computed):
    report = norm_stats.compute_norm_stats(config())
    for key in ("state", "actions"):
        assert report.names[key][:2] == ["left_waist", "left_shoulder"]
        assert report.names[key][7:] == [name.replace("left", "right") for name in report.names[key][:7]]
    text = [list(column.cells) for column in norm_stats_report.table(report, "state").columns]
    assert text[0][13] == "right_gripper"
    assert set(text[-1]) == {""}


def test_transforms_that_take_no_batch_are_given_single_frames(home):
    def only_single(sample: dict) -> dict:
        if np.ndim(sample["state"]) != 1:
            raise ValueError("one at a time")
        return sample

    batched = norm_stats.compute_norm_stats(config()).stats
    cfg = config()
    data_config = cfg.data.create(None, cfg.model)
    data_config = dataclasses.replace(
        data_config, data_transforms=data_config.data_transforms.push(inputs=[only_single])
    )
    sources = norm_stats._open_sources(data_config, None)
    singly = norm_stats._accumulate(sources, data_config, 50, 28)
    for key, stats in batched.items():
        for field in ("mean", "std", "q01", "q99"):
            np.testing.assert_allclose(getattr(singly[key].stats, field), getattr(stats, field), rtol=1e-12)


def weighted_quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    """The smallest value that at least the share q of the weight does not exceed: by its definition."""
    total = weights.sum()
    return min(v for v in values if weights[values <= v].sum() >= q * total * (1 - 1e-9))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.02])
def test_statistics_of_a_mixture_are_those_of_weighted_samples(share):
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (400, 2)).round(1), rng.normal(4, 0.2, (900, 2)).round(1)  # rounded: with ties
    parts = [exact_stats.VectorStats(len(a), share), exact_stats.VectorStats(len(b), 1 - share)]
    for part, values in zip(parts, (a, b), strict=True):
        for block in np.array_split(values, 3):
            part.update(block)
    found = exact_stats.combine(parts)
    values = np.concatenate([a, b])
    weights = np.concatenate([np.full(len(a), share / len(a)), np.full(len(b), (1 - share) / len(b))])
    mean = np.average(values, axis=0, weights=weights)
    np.testing.assert_allclose(found.stats.mean, mean)
    np.testing.assert_allclose(found.stats.std, np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights)))
    for dim in range(2):
        low, high = (weighted_quantile(values[:, dim], weights, q) for q in (0.01, 0.99))
        assert (found.stats.q01[dim], found.stats.q99[dim]) == (low, high)
        is_outside = (values[:, dim] < low) | (values[:, dim] > high)
        np.testing.assert_allclose(found.outside[dim], weights[is_outside].sum(), atol=1e-9)
        assert (found.low[dim], found.high[dim]) == (values[:, dim].min(), values[:, dim].max())


def test_a_mixture_has_statistics_of_its_own_and_others_are_refused(computed):
    copy_dataset(computed, "other", scale=2.0)
    mixture = (MixedDataset("realman/dual_arm", 1.0), MixedDataset("realman/other", 3.0, "it's a test"))
    cfg = config(mixture=mixture)
    message = refusal(cfg)
    assert "training reads 'realman/dual_arm' (3 episodes, 28 frames) with 25.0% + 'realman/other'" in message
    flags = "--data.mixture realman/dual_arm:1 'realman/other:3:it'\"'\"'s a test'"
    assert f'ARGS="{flags}"' in message
    alone = normalize.load(computed / "assets/debug_realman/realman/dual_arm")["state"]
    mixed = norm_stats.compute_norm_stats(cfg).stats["state"]
    np.testing.assert_allclose(mixed.mean, 0.25 * alone.mean + 0.75 * 2 * alone.mean, rtol=1e-6)
    data_loader.create_data_loader(cfg)
    other_weights = tuple(dataclasses.replace(member, weight=1.0) for member in mixture)
    assert "they weight the datasets" in refusal(config(mixture=other_weights))
    assert "belong to 'realman/dual_arm' (3 episodes, 28 frames) with 25.0% + " in refusal(config())


def test_samples_of_a_mixture_have_the_prompt_of_their_dataset(computed):
    copy_dataset(computed, "other", scale=2.0)
    cfg = config(mixture=(MixedDataset("realman/dual_arm"), MixedDataset("realman/other", prompt="do it twice")))
    dataset = datasets.create_dataset(cfg.data.create(None, cfg.model), 50, cfg.model)
    assert len(dataset) == 56
    assert [dataset[i]["prompt"] for i in (0, 12, 28, 55)] == [
        "pick up the cube", "hand over the cube", "do it twice", "do it twice",
    ]  # fmt: skip
    np.testing.assert_allclose(dataset[28]["observation.state"], 2 * dataset[0]["observation.state"])


def test_a_prompt_that_would_not_reach_the_model_is_refused(home):
    cfg = config(mixture=(MixedDataset("realman/dual_arm", 1.0, "x"),))
    structure = {"images": {}, "state": "observation.state", "actions": "action"}
    repack = _transforms.Group(inputs=[_transforms.RepackTransform(structure)])
    data_config = dataclasses.replace(cfg.data.create(None, cfg.model), repack_transforms=repack)
    with pytest.raises(errors.ConfigError, match="prompt of 'realman/dual_arm' would not reach the model"):
        datasets.create_dataset(data_config, 50, cfg.model)


def test_datasets_of_several_rates_are_not_mixed(home, set_rate):
    copy_dataset(home, "fast")
    set_rate(home / "data/lerobot/realman/dual_arm", 30)
    mixed = config(mixture=(MixedDataset("realman/dual_arm"), MixedDataset("realman/fast")))
    message = r"mixture: 'realman/dual_arm' has 30, 'realman/fast' has 50 frames per second\. Mix only datasets of one"
    with pytest.raises(errors.ConfigError, match=message):
        norm_stats.compute_norm_stats(mixed)
    with pytest.raises(errors.ConfigError, match=message):
        datasets.open_sources(mixed.data.create(None, mixed.model), 50)
