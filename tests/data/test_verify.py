"""The comparison through lerobot: agreement item by item, and every kind of difference found. A small library stands in for lerobot's own.

It reads what a dataset says of itself with other code than the converter's; with .venv-lerobot installed, the real one judges too.
"""

import json
from pathlib import Path
import shutil
import sys

import h5py
import numpy as np
import pytest

from realman import spec
from realman.data import convert
from realman.data.dataset import layout
from realman.data.inspection import command as inspection
from realman.data.verify import command
from realman.data.verify import environment
from realman.errors import DatasetError

STAND_IN = '''
import io, json
from pathlib import Path
import numpy as np
from PIL import Image
import pyarrow.parquet as pq

class LeRobotDataset:
    """Items as lerobot 0.3.3 shows them, from the parquet files of an image dataset."""

    def __init__(self, repo_id, root, video_backend):
        self.meta = self
        info = json.loads((root / "meta/info.json").read_text())
        self.camera_keys = [k for k, f in info["features"].items() if f["dtype"] == "image"]
        self.tasks = [json.loads(line)["task"] for line in (root / "meta/tasks.jsonl").read_text().splitlines()]
        self.rows = [row for path in sorted(root.glob("data/*/*.parquet")) for row in pq.read_table(path).to_pylist()]
        print("a greeting that must not get into the stream")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        item = dict(self.rows[i])
        for key in self.camera_keys:
            image = Image.open(io.BytesIO(item[key]["bytes"]))
            item[key] = np.moveaxis(np.asarray(image), -1, 0).astype(np.float32) / 255
        kinds = {float: np.float32, int: np.int64, list: np.float32}
        numbers = {k: np.array(v, kinds[type(v)]) for k, v in item.items() if k not in self.camera_keys}
        return {**numbers, **{k: item[k] for k in self.camera_keys}, "task": self.tasks[item["task_index"]]}
'''


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Folder of a package `lerobot` that is small."""
    folder = tmp_path_factory.mktemp("stand_in")
    package = folder / "lerobot" / "datasets"
    package.mkdir(parents=True)
    (package / "lerobot_dataset.py").write_text(STAND_IN)
    metadata = folder / "lerobot-0.3.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot\nVersion: 0.3.3\n")
    return folder


@pytest.fixture
def verify(stand_in, monkeypatch, capsys):
    """Run the command; returns its exit code and all its output."""
    monkeypatch.setenv("PYTHONPATH", str(stand_in))

    def run(raw_dir: Path, root: Path, python: str = sys.executable):
        code = command.main(command.Args(raw_dir, root=root, lerobot_python=Path(python)))
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def recordings(tmp_path, tiny_recordings):
    return shutil.copytree(tiny_recordings, tmp_path / "raw")


def make(raw_dir, root, **options):
    args = convert.Args(raw_dir=raw_dir, root=root, workers=1, **options)
    convert.main(args)
    return args.target


def test_a_dataset_agrees_with_its_recordings_item_by_item(tmp_path, recordings, verify):
    make(recordings, tmp_path / "out")
    code, out = verify(recordings, tmp_path / "out")
    assert code == 0
    assert "lerobot 0.3.3: 28 items" in out
    assert out.endswith("all features agree\n")
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in out.splitlines() if line.startswith("│")}
    expected = {
        *layout.camera_keys(tmp_path / "out/realman/dual_arm"),
        spec.STATE_KEY,
        spec.ACTION_KEY,
        "task",
        "index",
    }
    assert expected < set(rows)
    assert all([cell.strip() for cell in cells] == ["28", "28"] for cells in rows.values())


def test_the_recordings_are_read_as_they_were_for_the_conversion(tmp_path, recordings, verify):
    swap = ("cam_left_wrist=cam_right_wrist", "cam_right_wrist=cam_left_wrist")
    options = {"raw_arm_order": "left_right", "color": "bgr", "camera_map": swap, "cameras": spec.CAMERAS[1:]}
    make(recordings, tmp_path / "out", **options)
    code, out = verify(recordings, tmp_path / "out")
    assert code == 0, out


def test_numbers_left_out_and_units_of_commands_are_compared_as_converted(tmp_path, write_recording, verify):
    for i in range(2):
        path = write_recording(tmp_path / "raw" / f"episode{i}" / "data.hdf5", num_frames=3, seed=i).path
        with h5py.File(path, "r+") as file:
            action = file["action"][()]
            action[:, list(spec.GRIPPER_DIMS)] *= 1000
            file["action"][...] = action
    with h5py.File(path, "r+") as file:
        file["observations/effort"][0, 0] = np.nan
    target = make(tmp_path / "raw", tmp_path / "out", action_gripper_range="0:1000")
    code, out = verify(tmp_path / "raw", tmp_path / "out")
    assert code == 0, out
    assert spec.EFFORT_KEY not in json.loads((target / layout.INFO).read_text())["features"]


def test_tasks_of_a_file_are_compared_too(tmp_path, write_recording, verify):
    write_recording(tmp_path / "raw" / "episode_0.hdf5", task=None, num_frames=2)
    (tmp_path / "tasks.json").write_text('{"episode_0": "fold the towel"}')
    make(tmp_path / "raw", tmp_path / "out", task_file=tmp_path / "tasks.json")
    assert verify(tmp_path / "raw", tmp_path / "out")[0] == 0


def test_images_stored_with_loss_need_only_be_close(tmp_path, write_recording, verify):
    write_recording(tmp_path / "raw" / "episode_0.hdf5", form="raw", num_frames=3, size=(96, 128))
    make(tmp_path / "raw", tmp_path / "out", image_format="jpg")
    code, out = verify(tmp_path / "raw", tmp_path / "out")
    assert code == 0
    (row,) = [line for line in out.splitlines() if "cam_high" in line]
    items, identical, _, psnr_db = (cell.strip() for cell in row.split("│")[2:6])
    assert (items, identical) == ("3", "0")
    assert float(psnr_db) > 20


DIFFERENCES = {
    "number": (spec.STATE_KEY, lambda f: f["observations/qpos"].__setitem__((4, 2), 0.25), "episode_1.hdf5 frame 4"),
    "picture": (
        spec.image_key("cam_low"),
        lambda f: f["observations/images/cam_low"].__setitem__(3, f["observations/images/cam_low"][2]),
        "episode_1.hdf5 frame 3",
    ),
    "exchanged cameras": (
        spec.image_key("cam_low"),
        lambda f: (
            f.move("observations/images/cam_low", "x"),
            f.move("observations/images/cam_high", "observations/images/cam_low"),
            f.move("x", "observations/images/cam_high"),
        ),
        "episode_1.hdf5 frame",
    ),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_difference_is_found_and_named(tmp_path, recordings, verify, caplog, difference):
    key, change, place = DIFFERENCES[difference]
    make(recordings, tmp_path / "out")
    with h5py.File(recordings / "episode_1.hdf5", "r+") as file:
        change(file)
    code, out = verify(recordings, tmp_path / "out")
    assert code == 1
    assert "the dataset differs from its recordings" in out
    assert any(f"{key} differs" in text and place in text for text in caplog.messages)


def test_a_task_that_was_changed_is_found(tmp_path, recordings, verify, caplog):
    root = make(recordings, tmp_path / "out")
    path = root / layout.TASKS
    path.write_text(path.read_text().replace("hand over", "drop"))
    assert verify(recordings, tmp_path / "out")[0] == 1
    assert any("task differs" in text and "'drop the cube', expected 'hand over" in text for text in caplog.messages)


def test_a_dataset_that_the_library_refuses_is_an_error_of_one_line(tmp_path, recordings, verify):
    root = make(recordings, tmp_path / "out")
    (root / layout.TASKS).unlink()
    with pytest.raises(DatasetError, match=r"lerobot does not load it: FileNotFoundError.*tasks\.jsonl"):
        verify(recordings, tmp_path / "out")


def test_an_image_that_the_library_cannot_show_is_named_by_item(tmp_path, recordings, verify):
    make(recordings, tmp_path / "out")
    table = tmp_path / "out" / "realman" / "dual_arm" / layout.data_path(1)
    data = table.read_bytes()
    second = data.index(b"\xff\xd8\xff", data.index(b"\xff\xd8\xff") + 3)
    table.write_bytes(data[:second] + b"\0\0\0" + data[second + 3 :])
    with pytest.raises(DatasetError, match=r"lerobot fails at item 12: .*cannot identify image"):
        verify(recordings, tmp_path / "out")


@pytest.mark.parametrize(
    ("lost", "message"), [("episode_2.hdf5", "has no 'episode_2.hdf5'"), (None, "has no meta/con")]
)
def test_a_dataset_of_other_recordings_is_refused(tmp_path, recordings, verify, lost, message):
    root = make(recordings, tmp_path / "out")
    (recordings / lost if lost else root / layout.CONVERSION).unlink()
    with pytest.raises(DatasetError, match=message):
        verify(recordings, tmp_path / "out")


def test_an_upgraded_dataset_has_no_recordings_and_the_remedy_works(tmp_path, recordings, verify, golden_dir):
    make(golden_dir / "lerobot_v21_image", tmp_path / "out")
    with pytest.raises(DatasetError, match="has not made it from recordings") as info:
        verify(golden_dir / "lerobot_v21_image", tmp_path / "out")
    folder = Path(str(info.value).rpartition("DATA=")[2].rstrip("'"))
    args = inspection.Args(data=folder, out_dir=tmp_path / "report", workers=1)
    inspection.main(args)
    assert (tmp_path / "report" / inspection.REPORT).is_file()


def test_a_dataset_that_was_made_of_recordings_is_verified_after_an_upgrade_too(tmp_path, recordings, verify):
    root = make(recordings, tmp_path / "out")
    make(root, tmp_path / "again")
    assert verify(recordings, tmp_path / "again")[0] == 0


def test_names_with_the_other_arm_first_are_refused(tmp_path, recordings, verify):
    path = make(recordings, tmp_path / "out") / layout.INFO
    info = json.loads(path.read_text())
    for key in (spec.STATE_KEY, spec.ACTION_KEY):
        info["features"][key]["names"] = list(spec.DIM_NAMES[7:] + spec.DIM_NAMES[:7])
    path.write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="the names put the left arm first, but 'make convert' wrote the right"):
        verify(recordings, tmp_path / "out")


def test_a_dataset_that_is_not_there_is_an_error_of_one_line(tmp_path, recordings, verify):
    with pytest.raises(DatasetError, match=r"no LeRobot dataset\. Make it with 'make convert"):
        verify(recordings, tmp_path / "nowhere")


def test_a_python_that_is_not_there_is_an_error_of_one_line(tmp_path, recordings, verify):
    make(recordings, tmp_path / "out")
    with pytest.raises(DatasetError, match="cannot be started"):
        verify(recordings, tmp_path / "out", "/nowhere/python")


def test_the_lock_pins_lerobot_with_hashes(repo_root):
    text = (repo_root / "requirements" / "lerobot.lock").read_text()
    assert "lerobot==0.3.3" in text
    assert text.count("--hash=sha256:") > 100
    excluded = (repo_root / "requirements" / "lerobot.excludes").read_text().split()
    assert not [name for name in excluded if f"\n{name}==" in text]


@pytest.mark.slow
@pytest.mark.skipif(not (environment.VENV / ".ready").exists(), reason="no .venv-lerobot: 'realman verify' makes it")
@pytest.mark.parametrize("mode", ["image", "video"])
def test_the_official_library_agrees(tmp_path, recordings, capsys, mode):
    root = make(recordings, tmp_path / "out", mode=mode, video_codec="h264")
    code = command.main(command.Args(recordings, root=tmp_path / "out"))
    info = json.loads((root / layout.INFO).read_text())
    assert (code, info["total_frames"]) == (0, 28), capsys.readouterr().out
