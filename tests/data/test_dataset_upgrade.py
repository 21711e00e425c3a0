"""A LeRobot v2.0 dataset becomes v2.1: the same tables and videos, statistics added; a v2.1 dataset stays as it is."""

import json
import shutil

import numpy as np
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


def remove_a_table(root):
    (root / layout.data_path(1)).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: change_info(root, codebase_version="v3.0"),
            r"is a LeRobot v3\.0 dataset, expected v2\.0 or v2\.1",
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


def test_options_for_recordings_do_not_fit_a_dataset(old, tmp_path):
    with pytest.raises(DatasetError, match="expected no flags for reading recordings"):
        upgrade(old, tmp_path, angle_unit="deg")
