"""A dataset is refused in one line, in training and in an upgrade, and what the line says to do works."""

import re

import pyarrow as pa
import pytest

from openpi.shared.errors import UserError
from openpi.training.lerobot.dataset import LeRobotDataset
from realman.data import convert
from realman.data.dataset import layout
from realman.errors import RealmanError
from tests.e2e import dialects

TEXT = "fold the towel"
PATH = re.escape(layout.DATA_PATH)


def lines(name, change):
    """Replace the lines of a file."""
    return lambda root: dialects.write_lines(root, name, change(dialects.read_lines(root, name)))


def feature(key, **changes):
    return dialects.change_features(lambda features: features[key].update(changes))


def without_dtype(root):
    dialects.change_features(lambda features: features["action"].pop("dtype"))(root)


def without_index(root):
    dialects.change_features(lambda features: features.pop("task_index"))(root)


def outside(root):
    (root.parent / "one.png").write_bytes(dialects.png(dialects.image(0, 0, 0)))
    cells = [{"bytes": None, "path": "../one.png"}]
    dialects.columns(dialects.CAMERA_KEYS, lambda column: pa.array(cells * len(column)))(root)


def inside(root):
    (root.parent / "one.png").rename(root / "one.png")
    cells = [{"bytes": None, "path": "one.png"}]
    dialects.columns(dialects.CAMERA_KEYS, lambda column: pa.array(cells * len(column)))(root)


# Fault, what training and an upgrade say (None: they do not look at it), remedy.
CASES = {
    "task without a text": (
        lines("tasks", lambda tasks: [{**tasks[0], "task": None}, tasks[1]]),
        r"task_index 0 has the task None, expected a text\. Write one there",
        r"task_index 0 has task None, expected a text\. Write it into the line",
        lines("tasks", lambda tasks: [{**tasks[0], "task": TEXT}, tasks[1]]),
    ),
    "two texts": (
        lines("tasks", lambda tasks: [*tasks, {**tasks[0], "task": "another"}]),
        r"task_index 0 has two texts, .* Remove the line that is wrong",
        r"task_index 0 has task 'fold the towel' and 'another'\. Remove the line that is wrong",
        lines("tasks", lambda tasks: tasks[:-1]),
    ),
    "task without a line": (
        lines("tasks", lambda tasks: tasks[1:]),
        r"frame 0 has task_index 0, which meta/tasks.jsonl lacks\. Add a line with its text there",
        r"has task_index 0, which meta/tasks.jsonl lacks\. Add a line with its text there",
        lines("tasks", lambda tasks: [*tasks, {"task_index": 0, "task": TEXT}]),
    ),
    "two lengths": (
        lines("episodes", lambda episodes: [*episodes, {**episodes[0], "length": 3}]),
        r"episode_index 0 has two lengths, 5 and 3\. Remove the line that is wrong",
        r"episode_index 0 has length '5' and '3'\. Remove the line that is wrong",
        lines("episodes", lambda episodes: episodes[:-1]),
    ),
    "no rate": (
        dialects.drop_info("fps"),
        r"keys \['fps'\] are missing\. Copy the dataset again, or write them into the file",
        r"has fps None, expected frames per second\. Write them into the file",
        dialects.change_info(fps=50),
    ),
    "a rate that is none": (
        dialects.change_info(fps="fast"),
        r"found fps 'fast', expected frames per second\. Write them into the file",
        r"has fps 'fast', expected frames per second\. Write them into the file",
        dialects.change_info(fps=50),
    ),
    "no dtype": (
        without_dtype,
        r"features \['action'\] have no dtype\. Write it into the file",
        r"features \['action'\] have no dtype\. Write it into the file",
        feature("action", dtype="float32"),
    ),
    "no index": (
        without_index,
        r"features \['task_index'\] are missing, which number the frames\. Add them there",
        None,
        dialects.change_features(lambda f: f.update(task_index={"dtype": "int64", "shape": [1], "names": None})),
    ),
    "a shape as text": (
        feature("action", shape="(14,)"),
        r"found shape '\(14,\)' of 'action', expected a list of whole numbers\. Write it into the file",
        r"feature 'action' has shape '\(14,\)', expected a list of whole numbers\. Write it into the file",
        feature("action", shape=[14]),
    ),
    "a chunk size as text": (
        dialects.change_info(chunks_size="1000"),
        r"found chunks_size '1000', expected a number\. Write it into the file",
        r"has chunks_size '1000', expected a whole number\. Write it into the file",
        dialects.change_info(chunks_size=1000),
    ),
    "a path with unknown fields": (
        dialects.change_info(data_path="data/{episode}.parquet"),
        rf"found data_path 'data/\{{episode\}}\.parquet', expected one such as '{PATH}'\. Write it into the file",
        rf"has data_path 'data/\{{episode\}}\.parquet', expected one such as '{PATH}'\. Write it into the file",
        dialects.change_info(data_path=layout.DATA_PATH),
    ),
    "a path outside": (
        dialects.change_info(data_path=f"../other/{layout.DATA_PATH}"),
        rf"found data_path '\.\./other/.*', expected one such as '{PATH}'\. Write it into the file",
        rf"has data_path '\.\./other/.*', expected one such as '{PATH}'\. Write it into the file",
        dialects.change_info(data_path=layout.DATA_PATH),
    ),
    "images outside": (
        outside,
        r"one\.png: an image of .* is outside the dataset's folder\. Copy it there, and name it relative to that",
        r"one\.png: an image of .* is outside the dataset's folder\. Copy it there, and name it relative to that",
        inside,
    ),
    "a removed episode": (
        lines("episodes", lambda episodes: episodes[:1]),
        r'found total_episodes 1, expected 2 .* write "total_episodes": 1 and "total_frames": 5 into meta/info.json',
        r'found total_episodes 1, expected 2 .* write "total_episodes": 1 and "total_frames": 5 into meta/info.json',
        dialects.change_info(total_episodes=1, total_frames=5),
    ),
}


def is_one_line(error):
    """Whether a message is one line. An upgrade lists every bad episode, one line each."""
    first, *episodes = str(error).splitlines()
    return not episodes or "episodes are bad" in first


def train(root):
    return LeRobotDataset("towels", root=root)[0]["task"]


def upgrade(root):
    args = convert.Args(raw_dir=root, root=root.parent, repo_id="upgraded", workers=1)
    assert convert.main(args) == 0
    return train(args.target)


@pytest.mark.parametrize("case", CASES)
def test_what_a_refusal_says_to_do_works(tmp_path, case):
    fault, by_training, by_upgrade, remedy = CASES[case]
    root = dialects.make(tmp_path / "towels")
    fault(root)
    for act, message, kind in ((train, by_training, UserError), (upgrade, by_upgrade, RealmanError)):
        if message is not None:
            with pytest.raises(kind) as info:
                act(root)
            assert re.search(message, str(info.value))
            assert is_one_line(info.value)
    remedy(root)
    assert train(root) == upgrade(root) == TEXT


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"codebase_version": []}']
)
@pytest.mark.parametrize("name", ["info.json", "tasks.jsonl", "episodes.jsonl"])
def test_every_damage_of_the_metadata_is_one_line(tmp_path, name, content):
    root = dialects.make(tmp_path / "towels")
    (root / "meta" / name).write_bytes(content)
    for act, kind in ((train, UserError), (upgrade, RealmanError)):
        with pytest.raises(kind) as info:
            act(root)
        assert is_one_line(info.value)
