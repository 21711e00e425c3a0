"""Recordings of other recorders: what is read as it is, what has no veto, and what is refused in one line."""

import os
from pathlib import Path
import shutil
import sys

import cv2
import h5py
import numpy as np
import pytest

from realman import cli
from realman import spec
from realman.data import convert
from realman.data.checks import check_episode
from realman.data.dataset import from_raw
from realman.data.dataset import layout
from realman.data.inspection import command as inspection
from realman.data.raw import RawOptions
from realman.data.raw import find_episodes
from realman.data.raw import open_episode
from realman.data.raw import rows
from realman.data.raw.camera import CameraStream
from realman.errors import EpisodeError

IMAGES = "observations/images"


def run(monkeypatch, capsys, main, args_type, *flags):
    """Run a command line and return its exit code and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        cli.run(main, args_type)
    return ended.value.code, capsys.readouterr().err


def arguments(raw_dir, root, **options):
    return convert.Args(raw_dir=raw_dir, root=root, **{"workers": 1, **options})


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def lines(path):
    return layout.read_json_lines(path)


def problem_of(path, cameras=spec.CAMERAS):
    return check_episode(path, RawOptions(), cameras).problem


UNASKED = {
    "depth": lambda file: file.create_dataset(f"{IMAGES}/cam_high_depth", data=np.full((6, 48, 64), 800, np.uint16)),
    "a group": lambda file: file.create_group(f"{IMAGES}/intrinsics").create_dataset("k", data=np.eye(3)),
    "another length": lambda file: file.create_dataset(f"{IMAGES}/cam_slow", data=np.zeros((3, 8, 8, 3), np.uint8)),
    "floats": lambda file: file.create_dataset(f"{IMAGES}/flow", data=np.zeros((6, 8, 8, 2), np.float32)),
    "a number": lambda file: file.create_dataset(f"{IMAGES}/exposure", data=3),
    "empty buffers": lambda file: file.create_dataset(f"{IMAGES}/lost", (6,), h5py.vlen_dtype(np.uint8)),
    "a lost link": lambda file: file.__setitem__(f"{IMAGES}/link", h5py.SoftLink("/nowhere")),
    "another file": lambda file: file.__setitem__(f"{IMAGES}/outside", h5py.ExternalLink("other.hdf5", "/x")),
    "lengths as text": lambda file: file.create_dataset("compress_len", data=[[b"a"] * 6]),
    "a group of times": lambda file: file.create_group("timestamps").create_dataset("camera", data=np.arange(3)),
    "an empty rate": lambda file: file.attrs.create("fps", h5py.Empty("f8")),
}


@pytest.mark.parametrize("what", UNASKED)
def test_what_nobody_asked_for_has_no_veto(tmp_path, write_recording, what):
    truth = write_recording(tmp_path / "episode_0.hdf5")
    with h5py.File(truth.path, "r+") as file:
        UNASKED[what](file)
    report = check_episode(truth.path, RawOptions(), spec.CAMERAS)
    assert report.problem is None
    assert tuple(name for name, _, _ in report.facts.image_sizes) == spec.CAMERAS
    with open_episode(truth.path) as episode:
        assert episode.fps == 50
        np.testing.assert_array_equal(episode.image("cam_low", 5), truth.frames["cam_low"][5])


def test_a_broken_camera_has_a_veto_only_where_it_is_asked_for(tmp_path, write_recording, monkeypatch, capsys, caplog):
    path = write_recording(tmp_path / "raw" / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        del file[f"{IMAGES}/cam_low"]
        file[f"{IMAGES}/cam_low"] = np.zeros((6, 4, 4), np.uint8)
    flags = ["--data", tmp_path / "raw", "--root", tmp_path / "out", "--workers", "1"]
    code, err = run(monkeypatch, capsys, convert.main, convert.Args, *flags)
    assert code == 1
    assert f"'{IMAGES}/cam_low' has shape (6, 4, 4) of uint8" in err
    code, err = run(monkeypatch, capsys, convert.main, convert.Args, *flags, "--cameras", "cam_high")
    assert code == 0
    notes = [r.getMessage() for r in caplog.records if "recorded but not converted" in r.getMessage()]
    assert [note.count("cam_low") for note in notes] == [0, 1]
    data = tmp_path / "out/realman/dual_arm"
    assert layout.camera_keys(data) == ["observation.images.cam_high"]
    code, _ = run(monkeypatch, capsys, inspection.main, inspection.Args, "--data", path, "--out-dir", tmp_path / "r")
    assert code == 1


def test_another_file_next_to_the_frames_of_a_camera_has_no_veto(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5")
    with h5py.File(truth.path, "r+") as file:
        images = file[IMAGES]
        images.move("cam_high", "moved")
        images.move("moved", "cam_high/color")
        images["cam_high/depth"] = h5py.ExternalLink("depth.hdf5", "/depth")
    report = check_episode(truth.path, RawOptions(), spec.CAMERAS)
    assert report.problem is None
    assert [name for name, _ in report.facts.left_out] == [f"{IMAGES}/cam_high/depth"]
    with open_episode(truth.path) as episode:
        np.testing.assert_array_equal(episode.image("cam_high", 5), truth.frames["cam_high"][5])


@pytest.mark.parametrize("name", ["color", "rgb", "data", "anything"])
def test_a_camera_may_be_a_group_with_one_dataset_of_frames(tmp_path, write_recording, name):
    truth = write_recording(tmp_path / "episode_0.hdf5")
    with h5py.File(truth.path, "r+") as file:
        for camera in spec.CAMERAS:
            file.move(f"{IMAGES}/{camera}", "moved")
            file.move("moved", f"{IMAGES}/{camera}/{name}")
            if name != "anything":
                file[f"{IMAGES}/{camera}/depth"] = np.zeros((6, 48, 64), np.uint16)
    assert problem_of(truth.path) is None
    with open_episode(truth.path) as episode:
        assert episode.camera_place("cam_low") == f"'{IMAGES}/cam_low/{name}'"
        np.testing.assert_array_equal(episode.image("cam_low", 3), truth.frames["cam_low"][3])
        assert (f"{IMAGES}/cam_low/depth" in episode.left_out) == (name != "anything")


def test_a_group_of_arms_is_called_what_it_is(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        del file["observations/qpos"]
        file["observations/qpos/left"] = file["observations/qpos/right"] = np.zeros((6, 7))
    assert "'observations/qpos' is a group of left, right, expected (T, 14) numbers" in problem_of(path)


@pytest.mark.parametrize("name", ["episode{}/data.hdf5", "episode_{:06d}/episode.h5", "2026-11-27_{}/proprio.HDF5"])
def test_a_folder_per_episode_is_read_in_natural_order(tmp_path, write_recording, name, monkeypatch, capsys):
    numbers = (10, 2, 1)
    for n in numbers:
        write_recording(tmp_path / "raw" / name.format(n), num_frames=4, seed=n, task=f"task {n}")
    assert [p.relative_to(tmp_path / "raw").as_posix() for p in find_episodes(tmp_path / "raw")] == [
        name.format(n) for n in sorted(numbers)
    ]
    args = arguments(tmp_path / "raw", tmp_path / "out")
    convert.main(args)
    assert [line["source"] for line in lines(args.target / layout.SOURCES)] == [name.format(n) for n in (1, 2, 10)]
    assert [line["tasks"] for line in lines(args.target / layout.EPISODES)] == [[f"task {n}"] for n in (1, 2, 10)]
    chosen = arguments(tmp_path / "raw", tmp_path / "out", episodes=(2,), overwrite=True)
    convert.main(chosen)
    assert [line["source"] for line in lines(args.target / layout.SOURCES)] == [name.format(2)]
    flags = "--data", tmp_path / "raw", "--out-dir", tmp_path / "report", "--workers", 1
    assert "traceback" not in run(monkeypatch, capsys, inspection.main, inspection.Args, *flags)[1].lower()


def test_a_bad_recording_among_folders_is_named_by_its_folder(tmp_path, write_recording):
    for n in range(3):
        path = write_recording(tmp_path / "raw" / f"episode{n}" / "data.hdf5", num_frames=6).path
    with h5py.File(path, "r+") as file:
        file[f"{IMAGES}/cam_high"][3, 100:] = 0
    args = arguments(tmp_path / "raw", tmp_path / "out", skip_bad=True)
    with pytest.raises(EpisodeError, match=r"^episode2/data.hdf5: .*cam_high' is a JPEG cut off"):
        convert.main(arguments(tmp_path / "raw", tmp_path / "out"))
    convert.main(args)
    assert [line["source"] for line in lines(args.target / layout.SOURCES)] == [
        "episode0/data.hdf5",
        "episode1/data.hdf5",
    ]
    assert "episode2/data.hdf5" in (args.target / layout.REJECTED).read_text()


def test_folders_of_several_recordings_are_named_with_a_remedy_that_works(tmp_path, write_recording):
    for name in ("cube/episode_0.hdf5", "cube/episode_1.hdf5", "towel/episode_0.hdf5"):
        write_recording(tmp_path / name, num_frames=2)
    with pytest.raises(EpisodeError, match=r"cube' holds 2, .*towel' holds 1\. Give one folder of .* at a time"):
        find_episodes(tmp_path)
    assert len(find_episodes(tmp_path / "cube")) == 2


def _link(path):
    path.symlink_to("/nonexistent/episode_1.hdf5")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_link, "is a link to '/nonexistent/episode_1.hdf5', which is missing"),
        (Path.mkdir, "is a folder, expected an HDF5 file"),
        (os.mkfifo, "is no plain file, expected an HDF5 file"),
        (Path.touch, "is not an HDF5 file (0 bytes)"),
    ],
)
def test_what_is_named_like_a_recording_is_never_left_out_in_silence(tmp_path, tiny_recordings, make, message):
    raw = shutil.copytree(tiny_recordings, tmp_path / "raw")
    (raw / "episode_1.hdf5").unlink()
    make(raw / "episode_1.hdf5")
    with pytest.raises(EpisodeError) as caught:
        convert.main(arguments(raw, tmp_path / "out"))
    assert f"episode_1.hdf5: {message}" in str(caught.value)
    args = arguments(raw, tmp_path / "out", skip_bad=True)
    convert.main(args)
    assert [line["source"] for line in lines(args.target / layout.SOURCES)] == ["episode_0.hdf5", "episode_2.hdf5"]


def test_other_spellings_are_read_and_what_is_not_read_is_said(tmp_path, write_recording, caplog):
    for name in ("episode_0.HDF5", "episode_1.H5", ".episode_2.hdf5", "episode_3.hdf5.bak", "more/episode_4.hdf5"):
        write_recording(tmp_path / name, num_frames=2)
    assert [p.name for p in find_episodes(tmp_path)] == ["episode_0.HDF5", "episode_1.H5"]
    text = caplog.text
    assert all(name in text for name in (".episode_2.hdf5", "episode_3.hdf5.bak", "1 in 'more'"))


def _keep_outside(kind):
    def change(path, name):
        with h5py.File(path, "r+") as file:
            values = file[name][()]
            del file[name]
            with h5py.File(path.with_name("other.bin"), "w") as other:
                other["x"] = values
            if kind == "link":
                file[name] = h5py.ExternalLink("other.bin", "/x")
            elif kind == "link behind a link":
                file["y"] = h5py.ExternalLink("other.bin", "/")
                file[name] = h5py.SoftLink("/y/x")
            elif kind == "virtual":
                whole = h5py.VirtualLayout(values.shape, values.dtype)
                whole[...] = h5py.VirtualSource("other.bin", "x", values.shape)
                file.create_virtual_dataset(name, whole)
            else:
                outside = [(str(path.with_name("other.raw")), 0, values.nbytes)]
                file.create_dataset(name, values.shape, values.dtype, external=outside)[...] = values

    return change


@pytest.mark.parametrize("kind", ["link", "link behind a link", "virtual", "storage"])
@pytest.mark.parametrize("name", ["observations/qpos", f"{IMAGES}/cam_low", "observations"])
def test_data_in_other_files_are_not_pulled_in(tmp_path, write_recording, kind, name):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    before = path.read_bytes()
    if name == "observations":
        with h5py.File(path, "r+") as file:
            with h5py.File(tmp_path / "other.bin", "w") as other:
                file.copy("observations", other)
            del file["observations"]
            file["observations"] = h5py.ExternalLink("other.bin", "/observations")
    else:
        _keep_outside(kind)(path, name)
    problem = problem_of(path)
    assert problem.startswith(f"episode_0.hdf5: '{name}")
    assert "another file" in problem or "other files" in problem
    assert "Copy them into it" in problem
    path.write_bytes(before)
    assert problem_of(path) is None


def test_links_inside_a_recording_are_followed(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5")
    with h5py.File(truth.path, "r+") as file:
        file.move("action", "commands/joints")
        file["action"] = h5py.SoftLink("/commands/joints")
        file.move(f"{IMAGES}/cam_low", f"{IMAGES}/kept")
        file[f"{IMAGES}/cam_low"] = h5py.SoftLink("kept")
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
    with open_episode(truth.path) as episode:
        np.testing.assert_array_equal(episode.action, truth.action.astype(np.float32))
        np.testing.assert_array_equal(episode.image("cam_low", 1), truth.frames["cam_low"][1])


@pytest.mark.parametrize("name", ["observations/qpos", f"{IMAGES}/cam_high"])
@pytest.mark.parametrize("how", ["nothing written", "half written", "never allocated"])
def test_a_length_that_is_only_declared_is_refused(tmp_path, write_recording, name, how):
    path = write_recording(tmp_path / "episode_0.hdf5", form="raw").path
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        del file[name]
        chunks = None if how == "never allocated" else (1, *values.shape[1:])
        dataset = file.create_dataset(name, values.shape, values.dtype, chunks=chunks)
        if how == "half written":
            dataset[:3] = values[:3]
    share = "50%" if how == "half written" else "100%"
    assert f"'{name}' declares 6 frames, but {share} of their data were never written" in problem_of(path)


def test_a_huge_declared_length_costs_nothing(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        del file["observations/qpos"], file["action"]
        file.create_dataset("observations/qpos", (10**12, 14), chunks=(1000, 14))
        file.create_dataset("action", (10**12, 14), chunks=(1000, 14))
    assert "declares 1000000000000 frames, expected at most" in problem_of(path)


@pytest.mark.parametrize(("height", "width"), [(65000, 65000), (0, 64), (20000, 5000)])
def test_an_image_header_beyond_the_decoders_limit_is_one_line(tmp_path, write_recording, height, width):
    truth = write_recording(tmp_path / "episode_0.hdf5", cameras=("cam_high",))
    jpeg = bytearray(truth.jpegs["cam_high"][0])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    with h5py.File(truth.path, "r+") as file:
        rows_of = file[f"{IMAGES}/cam_high"]
        rows_of[0] = np.frombuffer(bytes(jpeg).ljust(rows_of.shape[1], b"\0"), np.uint8)
    problem = problem_of(truth.path, ("cam_high",))
    assert f"is a JPEG of {height}x{width} px, expected at most 67 megapixels" in problem
    assert "\n" not in problem


def test_an_unknown_compression_is_no_damage(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with h5py.File(path, "r+") as file:
        del file["action"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((6, 14))
        settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((6, 14))
        h5py.h5d.create(file.id, b"action", h5py.h5t.NATIVE_DOUBLE, space, settings)
    problem = problem_of(path)
    assert "'action' is compressed with HDF5 filter 32015, which is not installed, expected gzip or none" in problem


@pytest.mark.parametrize("when", ["before writing", "while writing"])
@pytest.mark.parametrize("same_time", [False, True])
def test_a_recording_that_is_replaced_after_the_check_is_not_written(
    tmp_path, tiny_recordings, monkeypatch, when, same_time
):
    raw = shutil.copytree(tiny_recordings, tmp_path / "raw")
    path = raw / "episode_1.hdf5"
    status = path.stat()
    other = shutil.copy(path, tmp_path / "other.hdf5")
    with h5py.File(other, "r+") as file:
        file["observations/qpos"][2, 3] = np.nan

    def replace():
        path.write_bytes(other.read_bytes())
        assert path.stat().st_size == status.st_size
        if same_time:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    plan, write = from_raw.plan_raw, from_raw._write_episode

    def plan_then_replace(*args, **options):
        made = plan(*args, **options)
        replace()
        return made

    def write_then_replace(episode, job, context):
        stats = write(episode, job, context)
        if job.episode_index == 1:
            replace()
        return stats

    if when == "before writing":
        from realman.data.dataset import conversion

        monkeypatch.setattr(conversion, "plan_raw", plan_then_replace)
    else:
        monkeypatch.setattr(from_raw, "_write_episode", write_then_replace)
    args = arguments(raw, tmp_path / "out")
    if when == "while writing" and same_time:
        # The numbers were read before, so what is written is what was checked.
        convert.main(args)
    else:
        with pytest.raises(EpisodeError, match=r"episode_1.hdf5: changed while it was converted"):
            convert.main(args)
        assert not args.target.exists()


def test_one_unusual_episode_leaves_efforts_out_with_one_note(tmp_path, write_recording, caplog):
    for i in range(3):
        path = write_recording(tmp_path / "raw" / f"episode_{i}.hdf5", num_frames=4).path
    with h5py.File(path, "r+") as file:
        file["observations/effort"][1, 2] = np.nan
    args = arguments(tmp_path / "raw", tmp_path / "out")
    convert.main(args)
    notes = [r.getMessage() for r in caplog.records if "effort" in r.getMessage()]
    assert len(notes) == 1
    assert "not finite at frame 1, right_elbow [2] (1 such values) in episode_2.hdf5 (1 of 3 recordings)" in notes[0]
    text = (args.target / layout.INFO).read_text()
    assert "observation.velocity" in text
    assert "observation.effort" not in text
    with pytest.raises(EpisodeError, match="Leave effort out of --extras"):
        convert.main(arguments(tmp_path / "raw", tmp_path / "out", extras=("effort",), overwrite=True))
    convert.main(arguments(tmp_path / "raw", tmp_path / "out", extras=(), overwrite=True))
    assert "observation.velocity" not in (args.target / layout.INFO).read_text()


@pytest.mark.parametrize("lengths", [(1,), (60, 1), (60, 2), (60, 3)])
def test_the_shortest_recordings_are_inspected(tmp_path, write_recording, monkeypatch, capsys, lengths):
    for i, num_frames in enumerate(lengths):
        write_recording(tmp_path / "raw" / f"episode_{i}.hdf5", num_frames=num_frames, cameras=("cam_high",))
    flags = "--data", tmp_path / "raw", "--out-dir", tmp_path / "report", "--workers", 1, "--cameras", "cam_high"
    _, err = run(monkeypatch, capsys, inspection.main, inspection.Args, *flags)
    if lengths != (1,):
        assert f"episode_{len(lengths) - 1}.hdf5" in err
    assert (tmp_path / "report/report.html").is_file()


CHUNKS = {
    "whole": {"chunks": (40, 6, 8, 3), "compression": "gzip"},
    "whole and shuffled": {"chunks": (40, 6, 8, 3), "compression": "gzip", "shuffle": True},
    "two": {"chunks": (23, 6, 8, 3), "compression": "gzip"},
    "longer than the episode": {"chunks": (64, 6, 8, 3), "compression": "gzip", "maxshape": (None, 6, 8, 3)},
    "checked": {"chunks": (40, 6, 8, 3), "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": (40, 6, 8, 3), "compression": "lzf"},
    "tiles": {"chunks": (40, 3, 8, 1), "compression": "gzip"},
}


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("userblock", [0, 512])
def test_large_chunks_are_unpacked_once_and_frames_are_right_in_any_order(tmp_path, monkeypatch, kind, userblock):
    monkeypatch.setattr(rows, "_MAX_CHUNK_BYTES", 1000)
    monkeypatch.setattr(rows, "_MAX_SPAN_BYTES", 2500)
    monkeypatch.setattr(rows, "_PACKED_BYTES", 100)
    data = np.random.default_rng(0).integers(0, 255, (40, 6, 8, 3), np.uint8)
    with h5py.File(tmp_path / "frames.hdf5", "w", userblock_size=userblock) as file:
        file.create_dataset("frames", data=data, **CHUNKS[kind])
        file.create_dataset("text", data=[bytes([65 + t % 26] * 50) for t in range(40)], chunks=(40,), compression=1)
    with h5py.File(tmp_path / "frames.hdf5") as file:
        stream = CameraStream(file["frames"], place="frames", color="rgb")
        kept = [stream.stored(t) for t in range(40)]
        np.testing.assert_array_equal(np.stack(kept), data)
        for t in (39, 0, 39, 5, 4, 4, 30, 22, 23):
            np.testing.assert_array_equal(stream.image(t), data[t])
        texts = rows.Rows(file["text"], "text")
        assert [bytes(texts[t])[0] for t in (0, 30, 2)] == [65, 69, 67]


def test_a_large_chunk_that_is_damaged_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_MAX_CHUNK_BYTES", 1000)
    data = np.random.default_rng(0).integers(0, 255, (40, 6, 8, 3), np.uint8)
    with h5py.File(tmp_path / "frames.hdf5", "w") as file:
        dataset = file.create_dataset("frames", data=data, chunks=(40, 6, 8, 3), compression="gzip")
        at = dataset.id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "frames.hdf5").read_bytes())
    content[at + 2000 : at + 2100] = bytes(100)
    (tmp_path / "frames.hdf5").write_bytes(content)
    with h5py.File(tmp_path / "frames.hdf5") as file:
        stream = CameraStream(file["frames"], place="e.hdf5: 'frames'", color="rgb")
        with pytest.raises(EpisodeError, match=r"e.hdf5: 'frames' near frame .*, the file is damaged"):
            stream.stored(39)


TEXTS = [
    "fold\u2028slowly",
    "a\u2029b",
    "a\x85b",
    "a\x0bb\x0cc",
    "a\x1cb\x1db\x1eb",
    "two\nlines",
    "tab\tbed",
    "\u53e0\u6bdb\u5dfe",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_task_of_any_characters_stays_one_line_and_comes_back(tmp_path, write_recording, text):
    write_recording(tmp_path / "raw" / "episode_0.hdf5", num_frames=2, task=text)
    args = arguments(tmp_path / "raw", tmp_path / "out")
    convert.main(args)
    assert [line["task"] for line in lines(args.target / layout.TASKS)] == [text]
    # Whatever a reader takes for the end of a line, there is one.
    assert len((args.target / layout.TASKS).read_text(encoding="utf-8").splitlines()) == 1
    assert (args.target / layout.TASKS).read_bytes().count(b"\\u53e0") == 0
    layout.write_json_lines(tmp_path / "old.jsonl", [])
    (tmp_path / "old.jsonl").write_text('{"task": "a\u2028b"}\n', encoding="utf-8")
    assert lines(tmp_path / "old.jsonl") == [{"task": "a\u2028b"}]


def test_a_task_that_no_file_can_hold_is_refused(tmp_path, write_recording):
    write_recording(tmp_path / "raw" / "episode_0.hdf5", num_frames=2)
    with pytest.raises(EpisodeError, match=r"task text .* is not UTF-8"):
        convert.main(arguments(tmp_path / "raw", tmp_path / "out", task="fold \udcff"))
    (tmp_path / "tasks.json").write_text('{"episode_0": "fold \\ud800"}')
    with pytest.raises(EpisodeError, match=r"text of 'episode_0' .* is not UTF-8"):
        convert.main(arguments(tmp_path / "raw", tmp_path / "out", task_file=tmp_path / "tasks.json"))


def test_a_jpeg_that_turns_grey_is_named(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5", cameras=("cam_high",))
    grey = cv2.imencode(".jpg", truth.frames["cam_high"][0][..., 0])[1].tobytes()
    with h5py.File(truth.path, "r+") as file:
        frames = file[f"{IMAGES}/cam_high"]
        frames[3] = np.frombuffer(grey.ljust(frames.shape[1], b"\0"), np.uint8)
    assert "is a JPEG of 1 channels, expected 3 at frame 3" in problem_of(truth.path, ("cam_high",))
