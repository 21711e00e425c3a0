"""A LeRobot v2.0 dataset becomes v2.1: the same tables and videos, statistics added; a v2.1 dataset stays as it is."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realman import spec
from realman.data import convert
from realman.data.dataset import layout
from realman.errors import DatasetError
from realman.errors import RealmanError


@pytest.fixture(params=["image", "video"])
def golden(request, golden_dir):
    return golden_dir / f"lerobot_v21_{request.param}"


@pytest.fixture
def old(golden, tmp_path):
    """LeRobot's own dataset as version v2.0 had it: no statistics per episode."""
    root = shutil.copytree(golden, tmp_path / "old")
    (root / layout.EPISODES_STATS).unlink()
    (root / "meta" / "stats.json").write_text("{}")
    change_info(root, codebase_version="v2.0")
    return root


def change_info(root, **changes):
    info = json.loads((root / layout.INFO).read_text())
    (root / layout.INFO).write_text(json.dumps({**info, **changes}))


def upgrade(source, tmp_path, **options):
    args = convert.Args(raw_dir=source, root=tmp_path, repo_id="new/set", workers=1, **options)
    assert convert.main(args) == 0
    return args.target


def payload(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.suffix in {".parquet", ".mp4"}}


def test_a_v20_dataset_becomes_what_lerobot_would_have_written(old, golden, tmp_path):
    new = upgrade(old, tmp_path)
    assert payload(new) == payload(golden)
    for name in (layout.INFO, layout.TASKS, layout.EPISODES):
        read = layout.read_json_lines if name.suffix == ".jsonl" else lambda p: json.loads(p.read_text())
        assert read(new / name) == read(golden / name)
    assert not (new / "meta" / "stats.json").exists()
    lines = zip(
        layout.read_json_lines(new / layout.EPISODES_STATS),
        layout.read_json_lines(golden / layout.EPISODES_STATS),
        strict=True,
    )
    for found, expected in lines:
        assert found["episode_index"] == expected["episode_index"]
        assert list(found["stats"]) == list(expected["stats"])
        for key, stats in expected["stats"].items():
            # LeRobot measured the frames before it encoded the videos; two thirds of a grey level of 2 % lie between.
            tolerance = 0.08 if golden.name.endswith("video") and key.startswith(spec.IMAGE_KEY_PREFIX) else 1e-6
            for name, values in stats.items():
                np.testing.assert_allclose(found["stats"][key][name], values, atol=tolerance, err_msg=f"{key} {name}")


def test_a_v21_dataset_keeps_its_statistics(golden, tmp_path):
    new = upgrade(golden, tmp_path, robot_type="realman")
    assert payload(new) == payload(golden)
    assert layout.read_json_lines(new / layout.EPISODES_STATS) == layout.read_json_lines(golden / layout.EPISODES_STATS)
    assert json.loads((new / layout.INFO).read_text())["robot_type"] == "realman"


def test_an_upgrade_in_place_needs_overwrite_and_keeps_everything(old, golden):
    args = {"raw_dir": old, "root": old.parent, "repo_id": old.name, "workers": 1}
    with pytest.raises(DatasetError, match="--overwrite"):
        convert.main(convert.Args(**args))
    convert.main(convert.Args(**args, overwrite=True))
    assert payload(old) == payload(golden)
    assert json.loads((old / layout.INFO).read_text())["codebase_version"] == "v2.1"


@pytest.mark.parametrize(
    "lost", [".git/HEAD", "meta/.notes/a.txt", "data/chunk-000/episode_000099.parquet", "data/notes.txt"]
)
def test_an_upgrade_in_place_deletes_nothing(old, tmp_path, lost):
    (old / lost).parent.mkdir(exist_ok=True, parents=True)
    (old / lost).write_text("mine")
    (old / ".frames").mkdir()
    name = lost if lost.startswith("data") else lost.rpartition("/")[0]
    args = {"raw_dir": old, "root": old.parent, "repo_id": old.name, "workers": 1, "overwrite": True}
    with pytest.raises(DatasetError, match=re.escape(f"'{name}' would be deleted by an upgrade in place")):
        convert.main(convert.Args(**args))
    assert (old / lost).read_text() == "mine"
    # The remedy.
    upgrade(old, tmp_path / "elsewhere")
    shutil.rmtree(old / name) if (old / name).is_dir() else (old / name).unlink()
    assert convert.main(convert.Args(**args)) == 0


def remove_a_table(root):
    (root / layout.data_path(1)).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: change_info(root, codebase_version="v3.0"),
            r"is a LeRobot v3\.0 dataset, expected v2\.0 or v2\.1. Convert it to v2\.1 with any4lerobot",
        ),
        (lambda root: (root / layout.INFO).write_text("{"), "is damaged"),
        (lambda root: (root / layout.EPISODES).write_text("{}"), "is damaged, 'episode_index' is missing"),
        (lambda root: (root / layout.TASKS).write_text("x"), "tasks.jsonl: is damaged"),
        (lambda root: (root / layout.TASKS).unlink(), "files are missing: meta/tasks.jsonl"),
        (remove_a_table, "files are missing: data/chunk-000/episode_000001.parquet"),
        (lambda root: (root / layout.data_path(1)).write_bytes(b"x" * 99), "is not a readable Parquet file"),
    ],
)
def test_a_damaged_dataset_is_refused_with_the_file_that_is_wrong(old, tmp_path, damage, message):
    damage(old)
    with pytest.raises(RealmanError, match=message):
        upgrade(old, tmp_path)
    assert not (tmp_path / "new" / "set").exists()


def lines_of(path):
    return layout.read_json_lines(path)


def write_lines(path, lines, mark="", end="\n"):
    path.write_bytes(mark.encode() + "".join(json.dumps(line, ensure_ascii=False) + end for line in lines).encode())


@pytest.fixture
def plain(golden_dir, tmp_path):
    """The dataset with images, free to be changed."""
    return shutil.copytree(golden_dir / "lerobot_v21_image", tmp_path / "plain")


@pytest.mark.parametrize("indices", [(1, 0), (0, 2), (3, 7)])
def test_each_task_keeps_its_index_its_text_and_its_other_keys(plain, tmp_path, indices):
    texts = ["pick up the cube", "hand over\u2028the cube"]
    tasks = [{"task_index": i, "task": text, "zh": "\u62ff"} for i, text in zip(indices, texts, strict=True)]
    write_lines(plain / layout.TASKS, [*tasks, tasks[0]], mark="\ufeff", end="\r\n\n")
    for path in plain.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        column = pa.array([indices[i] for i in table["task_index"].to_pylist()])
        pq.write_table(table.set_column(table.schema.get_field_index("task_index"), "task_index", column), path)
    new = upgrade(plain, tmp_path)
    assert payload(new) == payload(plain)
    assert lines_of(new / layout.TASKS) == sorted(tasks, key=lambda line: line["task_index"])
    assert json.loads((new / layout.INFO).read_text())["total_tasks"] == 2


def test_what_the_format_does_not_know_is_kept(plain, tmp_path):
    extra = {
        "meta/modality.json": '{"state": {"left_arm": {"start": 7, "end": 14}}}',
        "meta/more/notes.txt": "by hand",
        "meta/stats.json": "{}",
        "README.md": "# towels",
        "annotations/0.json": "[]",
    }
    for name, text in extra.items():
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_text(text)
    (plain / ".cache").mkdir()
    (plain / ".cache/lock").write_text("x")
    change_info(plain, splits={"train": "0:2", "test": "2:3"}, license="mit")
    episodes = [{**line, "success": True} for line in lines_of(plain / layout.EPISODES)]
    write_lines(plain / layout.EPISODES, reversed(episodes))
    stats = [{**line, "by": "me"} for line in lines_of(plain / layout.EPISODES_STATS)]
    stats[0]["stats"]["action"]["q01"] = [0.0] * 14
    write_lines(plain / layout.EPISODES_STATS, stats)
    write_lines(plain / layout.SOURCES, [{"episode_index": 1, "source": "episode_9.hdf5"}])
    new = upgrade(plain, tmp_path)
    assert {name: (new / name).read_text() for name in extra} == extra
    assert not (new / ".cache").exists()
    info = json.loads((new / layout.INFO).read_text())
    assert (info["splits"], info["license"]) == ({"train": "0:2", "test": "2:3"}, "mit")
    assert lines_of(new / layout.EPISODES) == episodes
    assert lines_of(new / layout.EPISODES_STATS) == stats
    assert [line["source"] for line in lines_of(new / layout.SOURCES)] == [
        layout.data_path(0).as_posix(),
        "episode_9.hdf5",
        layout.data_path(2).as_posix(),
    ]


CAMERA = spec.image_key("cam_high")


@pytest.mark.parametrize(
    "lose",
    [
        lambda stats: [x.pop("count") for x in stats.values()],
        lambda stats: stats.pop(CAMERA),
        lambda stats: stats.update({CAMERA: {**stats[CAMERA], "mean": [0.1, 0.2, 0.3]}}),
        lambda stats: stats.update(action=None),
        lambda stats: stats.clear(),
    ],
)
def test_statistics_that_are_not_whole_are_computed_again(plain, golden_dir, tmp_path, lose):
    stats = lines_of(plain / layout.EPISODES_STATS)
    lose(stats[1]["stats"])
    write_lines(plain / layout.EPISODES_STATS, stats)
    new = upgrade(plain, tmp_path)
    found, expected = (lines_of(root / layout.EPISODES_STATS) for root in (new, golden_dir / "lerobot_v21_image"))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["stats"].keys() == theirs["stats"].keys()
        for key, parts in theirs["stats"].items():
            for name, values in parts.items():
                np.testing.assert_allclose(ours["stats"][key][name], values, atol=1e-6, err_msg=f"{key} {name}")


def test_a_dataset_without_a_robot_gets_the_flags_name_or_the_default(plain, tmp_path):
    change_info(plain, robot_type=None)
    new = upgrade(plain, tmp_path)
    assert json.loads((new / layout.INFO).read_text())["robot_type"] == convert.DEFAULT_ROBOT_TYPE
    shutil.rmtree(new)
    assert json.loads((upgrade(plain, tmp_path, robot_type="rm75") / layout.INFO).read_text())["robot_type"] == "rm75"


def test_a_removed_episode_is_named_and_the_remedy_works(plain, tmp_path):
    lines = lines_of(plain / layout.EPISODES)
    write_lines(plain / layout.EPISODES, lines[:1] + lines[2:])
    with pytest.raises(DatasetError, match="found total_episodes 2, expected 3") as info:
        upgrade(plain, tmp_path)
    change_info(plain, **{name: int(number) for name, number in re.findall(r'"(\w+)": (\d+)', str(info.value))})
    new = upgrade(plain, tmp_path)
    # Episodes keep their index too, and tables that are not listed stay behind.
    assert [line["episode_index"] for line in lines_of(new / layout.EPISODES_STATS)] == [0, 2]
    assert sorted(p.name for p in new.glob("data/*/*")) == ["episode_000000.parquet", "episode_000002.parquet"]


def test_a_dataset_with_the_left_arm_first_is_upgraded_with_a_word_about_training(plain, tmp_path, caplog):
    features = json.loads((plain / layout.INFO).read_text())["features"]
    for key in (spec.STATE_KEY, spec.ACTION_KEY):
        features[key]["names"] = [f"{side}_{i}" for side in ("left", "right") for i in range(7)]
    change_info(plain, features=features)
    upgrade(plain, tmp_path)
    assert "the names put the left arm first. Train with --data.arm-order left_right" in caplog.text
    features[spec.ACTION_KEY]["names"].reverse()
    change_info(plain, features=features)
    with pytest.raises(DatasetError, match="another arm first in states than in actions"):
        upgrade(plain, tmp_path, overwrite=True)


def test_texts_have_no_statistics_and_wide_numbers_those_of_numpy(plain, tmp_path):
    features = json.loads((plain / layout.INFO).read_text())["features"]
    features["language_instruction"] = {"dtype": "string", "shape": [1], "names": None}
    features["observation.depth.cam_high"] = {"dtype": "uint16", "shape": [40, 50], "names": None}
    features["tactile"] = {"dtype": "float32", "shape": [2, 3], "names": None}
    change_info(plain, features=features, codebase_version="v2.0")
    rng = np.random.default_rng(0)
    depth, tactile = rng.integers(0, 65535, (12, 40, 50), np.uint16), rng.normal(size=(12, 2, 3)).astype(np.float32)
    for path in plain.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        n = len(table)
        table = table.append_column("language_instruction", pa.array(["fold"] * n))
        table = table.append_column("observation.depth.cam_high", pa.array(depth[:n].tolist()))
        pq.write_table(table.append_column("tactile", pa.array(tactile[:n].tolist())), path)
    stats = lines_of(upgrade(plain, tmp_path) / layout.EPISODES_STATS)[0]["stats"]
    assert "language_instruction" not in stats
    for key, values in (("observation.depth.cam_high", depth), ("tactile", tactile)):
        for name, expected in (
            ("min", values.min(0)),
            ("max", values.max(0)),
            ("mean", values.mean(0)),
            ("std", values.std(0)),
            ("count", [12]),
        ):
            np.testing.assert_allclose(stats[key][name], expected, rtol=1e-5, atol=1e-6, err_msg=f"{key} {name}")


def test_options_for_recordings_do_not_fit_a_dataset(old, tmp_path):
    with pytest.raises(DatasetError, match="expected no flags for reading recordings"):
        upgrade(old, tmp_path, angle_unit="deg")
