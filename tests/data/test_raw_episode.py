"""Reading recordings: every form a file may have gives the same numbers and images, in the contract's layout and units."""

import io

import cv2
import h5py
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
from PIL import Image
import pytest

from realman import spec
from realman.data.raw import RawOptions
from realman.data.raw import find_episodes
from realman.data.raw import open_episode
from realman.data.raw import options as raw_options
from realman.data.raw.camera import CameraStream
from realman.errors import EpisodeError

IMAGE_FORMS = ("jpeg_padded", "jpeg_variable", "jpeg_strings", "raw")


def test_recordings_are_found_in_natural_order(tmp_path):
    for name in ("episode_10.hdf5", "episode_2.hdf5", "episode_1.h5", "notes.txt", ".episode_3.hdf5"):
        (tmp_path / name).touch()
    assert [p.name for p in find_episodes(tmp_path)] == ["episode_1.h5", "episode_2.hdf5", "episode_10.hdf5"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: None, "no such folder"),
        (lambda d: d.mkdir(), "no recordings"),
        (
            lambda d: ((d / "train").mkdir(parents=True), (d / "train" / "episode_0.hdf5").touch()),
            "train' holds 1. Give the folder",
        ),
    ],
)
def test_a_folder_without_recordings_is_named_with_what_to_do(tmp_path, make, expected):
    folder = tmp_path / "data"
    make(folder)
    with pytest.raises(EpisodeError, match=expected) as caught:
        find_episodes(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("form", IMAGE_FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_form_of_recording_reads_as_written(tmp_path, write_recording, form, dtype):
    state = np.linspace(0, 1, 5 * 14).reshape(5, 14).astype(dtype)
    truth = write_recording(tmp_path / "episode_0.hdf5", num_frames=5, form=form, state=state)
    with open_episode(truth.path) as episode:
        assert (episode.num_frames, episode.fps, episode.cameras) == (5, 50, spec.CAMERAS)
        np.testing.assert_array_equal(episode.state, state.astype(np.float32))
        np.testing.assert_array_equal(episode.action, truth.action.astype(np.float32))
        np.testing.assert_allclose(episode.velocity, 0.1 * state, rtol=1e-6)
        np.testing.assert_allclose(episode.effort, 10 * state, rtol=1e-6)
        for camera in spec.CAMERAS:
            for t in (4, 0, 2):
                np.testing.assert_array_equal(episode.image(camera, t), truth.frames[camera][t])
                expected = truth.jpegs[camera][t] if form != "raw" else None
                assert episode.encoded_image(camera, t) == expected


def test_buffers_padded_with_rubbish_are_cut_by_the_table_of_lengths(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5", cameras=("cam_low", "cam_high"))
    with h5py.File(truth.path, "r+") as file:
        # ALOHA's table is float32 and does not say which row is which camera.
        file["compress_len"] = np.array([[len(j) for j in truth.jpegs[c]] for c in ("cam_low", "cam_high")], np.float32)
        for camera, jpegs in truth.jpegs.items():
            for t, jpeg in enumerate(jpegs):
                file[f"observations/images/{camera}"][t, len(jpeg) :] = 7
    with open_episode(truth.path) as episode:
        assert [episode.encoded_image("cam_high", t) for t in range(6)] == truth.jpegs["cam_high"]
        assert [episode.encoded_image("cam_low", t) for t in range(6)] == truth.jpegs["cam_low"]


@pytest.mark.parametrize("form", ["raw", "jpeg_padded"])
def test_bgr_recordings_are_turned_into_rgb_and_not_passed_through(tmp_path, write_recording, form):
    truth = write_recording(tmp_path / "episode_0.hdf5", form=form, num_frames=2)
    with open_episode(truth.path, RawOptions(color="bgr")) as episode:
        np.testing.assert_array_equal(episode.image("cam_high", 1), truth.frames["cam_high"][1][..., ::-1])
        assert episode.encoded_image("cam_high", 1) is None


def test_an_image_belongs_to_the_caller(tmp_path, write_recording):
    truth = write_recording(tmp_path / "episode_0.hdf5", form="raw", num_frames=2)
    with open_episode(truth.path) as episode:
        episode.image("cam_high", 0)[:] = 0
        np.testing.assert_array_equal(episode.image("cam_high", 0), truth.frames["cam_high"][0])


def test_compressed_chunks_are_read_whole_and_blocks_stay_small(tmp_path):
    with h5py.File(tmp_path / "frames.hdf5", "w") as file:
        data = np.arange(200 * 4 * 4 * 3, dtype=np.int64).astype(np.uint8).reshape(200, 4, 4, 3)
        chunked = file.create_dataset("chunked", data=data, chunks=(64, 4, 4, 3), compression="gzip")
        large = file.create_dataset("large", (60, 480, 640, 3), np.uint8, chunks=(1, 480, 640, 3))
        stream = CameraStream(chunked, place="chunked", color="rgb")
        np.testing.assert_array_equal(np.stack([stream.image(t) for t in range(200)]), data)
        assert stream.block_rows % 64 == 0
        stream = CameraStream(large, place="large", color="rgb")
        assert stream.block_rows * 480 * 640 * 3 <= 4 * 2**20


@settings(max_examples=40)
@given(order=st.lists(st.integers(0, 29), max_size=40), chunk_rows=st.sampled_from([None, 4]))
def test_frames_are_right_in_whatever_order_they_are_read(tmp_path_factory, order, chunk_rows):
    data = np.arange(30 * 2 * 2 * 3, dtype=np.int64).astype(np.uint8).reshape(30, 2, 2, 3)
    storage = {} if chunk_rows is None else {"chunks": (chunk_rows, 2, 2, 3), "compression": "gzip"}
    with h5py.File(tmp_path_factory.mktemp("order") / "frames.hdf5", "w") as file:
        stream = CameraStream(file.create_dataset("frames", data=data, **storage), place="frames", color="rgb")
        for t in [*order, *range(30), *order]:
            np.testing.assert_array_equal(stream.stored(t), data[t])


_SUBSAMPLINGS = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.sampled_from([(480, 640), (300, 402), (17, 33), (8, 8)]),
    quality=st.sampled_from([40, 85, 95, 100]),
    subsampling=st.sampled_from(sorted(_SUBSAMPLINGS)),
    progressive=st.booleans(),
    stride=st.integers(1, 4),
)
def test_pixels_are_those_that_pillow_decodes(tmp_path_factory, seed, size, quality, subsampling, progressive, stride):
    """Pillow is what the official library decodes with; a reader that saves work must not change a single level."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8)
    image = cv2.add(cv2.resize(coarse, size[::-1]), rng.integers(0, 30, (*size, 3), np.uint8))
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SUBSAMPLINGS[subsampling]]
    data = cv2.imencode(".jpg", image, [*flags, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)])[1].tobytes()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    with h5py.File(tmp_path_factory.mktemp("jpeg") / "frames.hdf5", "w") as file:
        padded = np.frombuffer(data + bytes(seed), np.uint8)
        stream = CameraStream(file.create_dataset("frames", data=padded[None]), place="frames", color="rgb")
        stored = stream.stored(0)
        assert stored.tobytes() == data
        np.testing.assert_array_equal(stream.decode(stored, 0, stride), expected[::stride, ::stride])


contract_numbers = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(14)), elements=st.floats(0, 1, width=32))


@settings(max_examples=50)
@given(
    values=contract_numbers,
    unit=st.sampled_from(["rad", "deg"]),
    order=st.sampled_from(["right_left", "left_right"]),
    ends=st.sampled_from([(0.0, 1.0), (0.0, 1000.0), (1000.0, 0.0), (-3.0, 998.0), (0.07, 0.0)]),
)
def test_what_a_recorder_changes_the_options_change_back(values, unit, order, ends):
    recorded = values.astype(np.float64)
    recorded[:, list(spec.GRIPPER_DIMS)] = ends[0] + recorded[:, list(spec.GRIPPER_DIMS)] * (ends[1] - ends[0])
    if unit == "deg":
        recorded[:, list(spec.JOINT_DIMS)] = np.rad2deg(recorded[:, list(spec.JOINT_DIMS)])
    if order == "left_right":
        recorded = np.concatenate([recorded[:, 7:], recorded[:, :7]], axis=1)
    before = recorded.copy()
    options = RawOptions(angle_unit=unit, gripper_range=ends, raw_arm_order=order)
    np.testing.assert_allclose(raw_options.positions(recorded, options), values, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(recorded, before)


def test_velocities_follow_the_unit_and_the_sense_of_the_gripper():
    recorded = np.tile(np.arange(14.0), (2, 1))
    options = RawOptions(angle_unit="deg", gripper_range=(1000, 0), raw_arm_order="left_right")
    velocity = raw_options.velocities(recorded, options)
    assert velocity[0, 0] == pytest.approx(np.deg2rad(7.0))
    assert velocity[0, 6] == pytest.approx(-0.013)
    np.testing.assert_array_equal(raw_options.efforts(recorded, options)[0], [*range(7, 14), *range(7)])


def test_grippers_are_clipped_for_users_and_not_for_checks(tmp_path, write_recording):
    state = np.full((3, 14), 0.5)
    state[:, 6], state[:, 13] = -0.003, 1.02
    truth = write_recording(tmp_path / "episode_0.hdf5", num_frames=3, state=state)
    with open_episode(truth.path) as episode:
        assert episode.state[0, [6, 13]].tolist() == [0.0, 1.0]
        np.testing.assert_allclose(episode.unclipped_state[0, [6, 13]], [-0.003, 1.02], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gripper_range": (5.0, 5.0)}, "gripper range 5:5"),
        ({"fps": 0}, "fps: found 0, expected 1 to 1000"),
        ({"task": "  "}, "task text is empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(values, message):
    with pytest.raises(EpisodeError, match=message):
        RawOptions(**values)


def test_rate_and_task_come_from_the_recording_or_the_options(tmp_path, write_recording):
    bare = write_recording(tmp_path / "episode_0.hdf5", fps=None, task=None).path
    with open_episode(bare) as episode:
        assert (episode.fps, episode.has_fps, episode.task) == (50, False, None)
    with open_episode(bare, RawOptions(fps=30, task="wave")) as episode:
        assert (episode.fps, episode.has_fps, episode.task) == (30, True, "wave")
    with h5py.File(bare, "r+") as file:
        file["language_instruction"] = [b"fold the towel"] * 6
    with open_episode(bare) as episode:
        assert episode.task == "fold the towel"


def test_the_users_word_replaces_what_the_recording_states_with_a_note(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    with open_episode(path, RawOptions(fps=30, task="wave")) as episode:
        assert (episode.fps, episode.has_fps, episode.task) == (30, True, "wave")
        assert episode.notes == (
            "recorded with fps 50, read as 30 as --fps says",
            "recorded with the task 'put the cube into the tray', read as 'wave'",
        )
    with open_episode(path, RawOptions(fps=50, task=" put the cube into the tray ")) as episode:
        assert (episode.fps, episode.task, episode.notes) == (50, "put the cube into the tray", ())


def _damage(path, how):
    if how == "not hdf5":
        path.write_text("hello")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        with h5py.File(path, "r+") as file:
            how(file)


def _replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def _rename_action_and_drop_images(file):
    file.move("action", "actions")
    del file["observations/images"]


def _cut_a_jpeg(file):
    row = file["observations/images/cam_low"]
    row[3, row.shape[1] // 2 :] = 0


@pytest.mark.parametrize(
    ("how", "messages"),
    [
        ("not hdf5", ["is not an HDF5 file"]),
        ("truncated", ["truncated HDF5"]),
        (_rename_action_and_drop_images, ["'action' is missing (found 'actions')", "'observations/images' is missing"]),
        (lambda f: f.move("observations/qpos", "observations/pos"), ["qpos' is missing (found 'observations/pos')"]),
        (
            lambda f: f["observations"].__delitem__("qpos"),
            ["'observations/qpos' is missing (found 'observations/qvel')"],
        ),
        (_replace("action", np.zeros((6, 13))), ["'action' has shape (6, 13)", "expected (T, 14)"]),
        (_replace("action", np.zeros((5, 14))), ["'action' has 5 frames, 'observations/qpos' has 6"]),
        (_replace("observations/images/cam_low", np.zeros((6, 4, 4), np.uint8)), ["cam_low", "has shape (6, 4, 4)"]),
        (
            _replace("observations/images/cam_low", np.zeros((6, 40), np.uint8)),
            ["cam_low", "is not a JPEG", "at frame 0"],
        ),
        (lambda f: f.attrs.create("fps", 29.97), ["attribute 'fps' is 29.97"]),
    ],
)
def test_a_damaged_recording_says_what_is_wrong_in_one_line(tmp_path, write_recording, how, messages):
    path = write_recording(tmp_path / "episode_7.hdf5").path
    _damage(path, how)
    with pytest.raises(EpisodeError) as caught:
        open_episode(path)
    line = str(caught.value)
    assert line.startswith("episode_7.hdf5: ")
    assert "\n" not in line
    assert all(message in line for message in messages), line


def test_a_jpeg_cut_off_in_the_middle_is_named_with_its_frame(tmp_path, write_recording):
    path = write_recording(tmp_path / "episode_0.hdf5").path
    _damage(path, _cut_a_jpeg)
    with open_episode(path) as episode, pytest.raises(EpisodeError, match=r"cam_low' is a JPEG cut off .* at frame 3"):
        episode.encoded_image("cam_low", 3)


def test_a_jpeg_of_another_size_is_named_with_its_frame(tmp_path, write_recording):
    small = write_recording(tmp_path / "small.hdf5", size=(24, 32)).jpegs["cam_low"][0]
    path = write_recording(tmp_path / "episode_0.hdf5").path

    def change(file):
        row = file["observations/images/cam_low"]
        row[2] = np.frombuffer(small.ljust(row.shape[1], b"\0"), np.uint8)

    _damage(path, change)
    with open_episode(path) as episode, pytest.raises(EpisodeError, match=r"24x32 px at frame 2, expected 48x64 px"):
        episode.image("cam_low", 2)


def _complaint_about(path):
    """What the reader says of a file while all of it is read; None when it finds nothing wrong."""
    try:
        with open_episode(path) as episode:
            episode.state, episode.action, episode.velocity, episode.effort  # noqa: B018
            for camera in episode.cameras:
                for t in range(episode.num_frames):
                    episode.image(camera, t)
    except EpisodeError as e:
        return str(e)
    return None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_file_crashes_the_reader_without_a_message(tmp_path_factory, write_recording, data):
    folder = tmp_path_factory.mktemp("fuzz")
    path = write_recording(folder / "episode_0.hdf5", cameras=("cam_high",), size=(16, 16), num_frames=2).path
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path.write_bytes(content[:end])
    complaint = _complaint_about(path)
    assert complaint is None or complaint.startswith("episode_0.hdf5: ")
