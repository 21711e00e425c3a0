"""Each remedy that a message about recordings names is tried against the very cause, and the numbers are then right."""

import errno
import json
from pathlib import Path
import shlex

import cv2
import h5py
import numpy as np
import pytest
import tyro

from realman import spec
from realman.data import convert
from realman.data.checks import check_episode
from realman.data.raw import open_episode
from realman.data.raw.folder import choose_episodes
from realman.data.raw.folder import find_episodes
from realman.errors import EpisodeError

JOINTS, GRIPPERS = list(spec.JOINT_DIMS), list(spec.GRIPPER_DIMS)
STATE, ACTION = "observations/qpos", "action"


def scaled(*datasets, joints=1.0, grippers=1.0):
    """Return a change of a recording: other units in these datasets."""

    def change(file):
        for name in datasets:
            values = file[name][()]
            values[:, JOINTS] *= joints
            values[:, GRIPPERS] *= grippers
            file[name][...] = values

    return change


def attribute(**values):
    return lambda file: file.attrs.update(values)


def replaced(name, value):
    def change(file):
        file.attrs.pop(name, None)
        if name in file:
            del file[name]
        file[name] = value

    return change


def without_task(*changes):
    def change(file):
        del file.attrs["language_instruction"]
        for other in changes:
            other(file)

    return change


def into_groups(file):
    for camera in spec.CAMERAS:
        path = f"observations/images/{camera}"
        file.move(path, "moved")
        file.move("moved", f"{path}/left")
        file[f"{path}/right"] = file[f"{path}/left"][()]


def rates_in_a_list(file):
    del file.attrs["fps"]
    rates = np.empty(1, object)
    rates[0] = np.array([50, 50])
    file.attrs.create("fps", rates, dtype=h5py.vlen_dtype(np.int64))


DEG = 180 / np.pi
MAP = " ".join(f"{camera}/left={camera}" for camera in spec.CAMERAS)

CASES = {
    # cause: (change of the recording, part of the message, flags that the message names)
    "angles in degrees": (scaled(STATE, ACTION, joints=DEG), "look like degrees: give {}", "--angle-unit deg"),
    "commands in degrees": (scaled(ACTION, joints=DEG), "look like degrees: give {}", "--action-angle-unit deg"),
    "states in degrees": (
        scaled(STATE, joints=DEG),
        "look like degrees: give {}",
        "--angle-unit deg --action-angle-unit rad",
    ),
    "grippers of 1000": (scaled(STATE, ACTION, grippers=1000), "Give {}, as", "--gripper-range 0:1000"),
    "grippers of 100": (scaled(STATE, ACTION, grippers=100), "Give {}, as", "--gripper-range 0:100"),
    "grippers of 255": (scaled(STATE, ACTION, grippers=255), "Give {}, as", "--gripper-range 0:255"),
    "states of 1000": (
        scaled(STATE, grippers=1000),
        "Give {}, as",
        "--gripper-range 0:1000 --action-gripper-range 0:1",
    ),
    "commands of 255": (scaled(ACTION, grippers=255), "Give {}, as", "--action-gripper-range 0:255"),
    "a rate of NTSC": (attribute(fps=30000 / 1001), "attribute 'fps' is 29.97, {}", "--fps 30"),
    "a rate as text": (attribute(fps="25 Hz"), "attribute 'fps' is '25 Hz', {}", "--fps 25"),
    "a rate as bytes": (attribute(fps=np.bytes_("about 20")), "attribute 'fps' is 'about 20', {}", "--fps 20"),
    "several rates": (attribute(fps=[30, 60]), "attribute 'fps' is 30, 60, {}", "--fps 30"),
    "a rate far too high": (attribute(fps=50_000), "attribute 'fps' is 50000, {}", "--fps and the true rate"),
    "rates in a list": (rates_in_a_list, "attribute 'fps' is 'neither number nor text', {}", "--fps and the true rate"),
    "no number": (attribute(fps=np.nan), "attribute 'fps' is nan, {}", "--fps and the true rate"),
    "no task": (without_task(), "has no task text", "--task 'what the robot does'"),
    "an empty task": (attribute(language_instruction="  "), "has no task text", "--task 'what the robot does'"),
    "a number as task": (without_task(attribute(task=3)), "'task' is not text", "--task 'what the robot does'"),
    "several tasks": (
        attribute(language_instruction=["fold", "fold it"]),
        "'language_instruction' holds 2 different texts",
        "--task 'what the robot does'",
    ),
    "a task in another encoding": (
        attribute(language_instruction=np.bytes_("\u53e0\u6bdb\u5dfe".encode("gbk"))),
        "'language_instruction' is not text in UTF-8",
        "--task 'what the robot does'",
    ),
    "zeros inside a task": (
        attribute(language_instruction=np.void(b"fold\0it")),
        "'language_instruction' is not text in UTF-8",
        "--task 'what the robot does'",
    ),
    "groups of two": (
        into_groups,
        "is a group of left, right, expected frames, or one dataset of frames",
        f"--camera-map {MAP}",
    ),
    "two cameras missing": (
        lambda file: [file.__delitem__(f"observations/images/{c}") for c in spec.CAMERAS[2:]],
        "is missing (recorded: cam_high, cam_low). Choose what to convert with --cameras",
        "--cameras cam_high cam_low",
    ),
    "odd efforts": (
        replaced("observations/effort", np.zeros((6, 12))),
        "Leave effort out of --extras",
        "--extras velocity",
    ),
}


def check(path, flags, *, extras=None):
    args = tyro.cli(convert.Args, args=["--data", str(path), *shlex.split(flags)])
    extras = extras if args.extras is None else args.extras
    return check_episode(path, args.options, args.cameras, accept=args.accept, extras=extras)


@pytest.mark.parametrize("cause", CASES)
def test_the_flags_that_a_message_names_are_the_remedy(tmp_path, write_recording, cause):
    change, message, flags = CASES[cause]
    truth = write_recording(tmp_path / "episode_0.hdf5", num_frames=6)
    with h5py.File(truth.path, "r+") as file:
        change(file)
    extras = ("effort",) if cause == "odd efforts" else None
    problem = check(truth.path, "", extras=extras).problem
    assert problem.startswith("episode_0.hdf5: ")
    assert "\n" not in problem
    assert "damaged" not in problem
    if "{}" in message:
        before, after = message.split("{}")
        assert before in problem
        assert f"{flags}{after}" in problem
    else:
        assert message in problem
        assert flags.split()[0] in problem
    # The remedy, word for word where the message leaves no choice.
    used = flags.replace("and the true rate", "50")
    assert check(truth.path, used, extras=extras).problem is None
    options = tyro.cli(convert.Args, args=["--data", str(truth.path), *shlex.split(used)]).options
    with open_episode(truth.path, options, cameras=()) as episode:
        np.testing.assert_allclose(episode.state, truth.state, atol=1e-5)
        np.testing.assert_allclose(episode.action, truth.action, atol=1e-5)
        np.testing.assert_array_equal(episode.image("cam_high", 2), truth.frames["cam_high"][2])


@pytest.mark.parametrize(
    ("flags", "message", "better"),
    [
        ("--angle-unit deg", "look like radians: leave --angle-unit deg out", ""),
        ("--action-angle-unit deg", "look like radians: give --action-angle-unit rad", "--action-angle-unit rad"),
        ("--gripper-range 0:1000", "look like 0:1. Leave --gripper-range out", ""),
        (
            "--action-gripper-range 0:1000",
            "look like 0:1. Give --action-gripper-range 0:1, as",
            "--action-gripper-range 0:1",
        ),
    ],
)
def test_a_flag_that_is_wrong_is_taken_back_by_the_remedy(tmp_path, write_recording, flags, message, better):
    state = 0.02 * np.linspace(0, 1, 6)[:, None] * np.ones(14)
    state[:, GRIPPERS] = np.linspace(0, 1, 6)[:, None]
    path = write_recording(tmp_path / "episode_0.hdf5", state=state, action=state).path
    assert message in check(path, flags).problem
    assert check(path, better).problem is None


def test_inspection_and_conversion_name_the_same_flags(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5", num_frames=6).path
    with h5py.File(path, "r+") as file:
        scaled(STATE, grippers=1000)(file)
        scaled(STATE, joints=DEG)(file)
    from realman.data.inspection.diagnosis import diagnose
    from realman.data.inspection.inspected_data import open_data
    from realman.data.inspection.measure import measure_all
    from realman.data.inspection.survey import Survey
    from realman.data.raw import RawOptions

    data = open_data(tmp_path, RawOptions())
    findings = diagnose(Survey(data, spec.CAMERAS, "unknown", None, tuple(measure_all(data, spec.CAMERAS, 1))))
    remedies = " ".join(f.remedy for f in findings)
    assert "--angle-unit deg --action-angle-unit rad" in remedies
    assert "--gripper-range 0:1000 --action-gripper-range 0:1" in remedies


def test_the_remedy_for_a_group_keeps_the_wanted_name_and_can_be_typed(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        images = file["observations/images"]
        images.move("cam_high", "moved")
        images.move("moved", "top view/left")
        images["top view/right"] = images["top view/left"][()]
    flags = "--camera-map 'top view=cam_high'"
    problem = check(path, flags).problem
    remedy = "--camera-map 'top view/left=cam_high'"
    assert problem.endswith(f"Choose one with {remedy}")
    report = check(path, remedy)
    assert report.problem is None
    assert [camera for camera, _, _ in report.facts.image_sizes] == list(spec.CAMERAS)


def test_a_task_file_replaces_any_task(tmp_path, write_recording):
    for i in range(2):
        path = write_recording(tmp_path / "raw" / f"episode_{i}.hdf5", num_frames=4).path
        with h5py.File(path, "r+") as file:
            without_task(attribute(task="dummy") if i else replaced("instruction", [b"fold", b"fold it"]))(file)
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps({"episode_0": "fold the towel", "episode_1.hdf5": "open it"}), encoding="utf-8-sig")
    args = convert.Args(raw_dir=tmp_path / "raw", root=tmp_path / "out", workers=1, task_file=tasks)
    convert.main(args)
    lines = (args.target / "meta/episodes.jsonl").read_text().split("\n")
    assert [json.loads(line)["tasks"] for line in lines if line] == [["fold the towel"], ["open it"]]


def test_two_recordings_of_one_number_are_said_and_not_chosen_between(tmp_path, write_recording, caplog):
    for name in ("episode_1.hdf5", "episode_01.hdf5", "episode_2.H5"):
        write_recording(tmp_path / name, num_frames=2)
    paths = find_episodes(tmp_path)
    assert [p.name for p in paths] == ["episode_01.hdf5", "episode_1.hdf5", "episode_2.H5"]
    assert "'episode_01.hdf5' and 'episode_1.hdf5'. Both are used, so remove one" in caplog.text
    with pytest.raises(EpisodeError, match=r"have the same number, expected one recording of it\. Rename or move one"):
        choose_episodes(paths, (1,))
    assert [p.name for p in choose_episodes(paths, (2,))] == ["episode_2.H5"]
    (tmp_path / "episode_01.hdf5").rename(tmp_path / "episode_7.hdf5")
    assert [p.name for p in choose_episodes(find_episodes(tmp_path), (1,))] == ["episode_1.hdf5"]


def test_bytes_after_a_jpeg_are_cut_as_every_decoder_does(tmp_path, write_recording):
    for rest in (b"\r\n", b"\0\0\1", b"\xff", b"\xff\xd9rest", bytes(range(1, 200))):
        for flags in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]):
            truth = write_recording(tmp_path / "episode_0.hdf5", num_frames=2, cameras=("cam_high",), optional=False)
            images = truth.frames["cam_high"]
            jpegs = [cv2.imencode(".jpg", im[..., ::-1], flags)[1].tobytes() for im in images]
            with h5py.File(truth.path, "r+") as file:
                del file["observations/images/cam_high"]
                data = file.create_dataset("observations/images/cam_high", (2,), h5py.vlen_dtype(np.uint8))
                for t, jpeg in enumerate(jpegs):
                    data[t] = np.frombuffer(jpeg + rest, np.uint8)
            with open_episode(truth.path) as episode:
                assert [episode.encoded_image("cam_high", t) for t in range(2)] == jpegs


def test_a_folder_of_the_system_next_to_recordings_has_no_veto(tmp_path, write_recording, monkeypatch, caplog):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    (tmp_path / "lost+found").mkdir()
    list_folder = Path.iterdir

    def refuse(folder):
        if folder.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert find_episodes(tmp_path) == [path]
    assert "lost+found: left out, because it cannot be listed (Permission denied)" in caplog.text


def test_a_single_folder_has_its_number_too(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_3" / "data.hdf5").path
    assert choose_episodes(find_episodes(tmp_path), [3]) == [path]
