"""Pictures on their way into a dataset: watched, encoded as asked, the same whatever the number of threads."""

import json

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from realman import spec
from realman.data import convert
from realman.data.dataset import conversion
from realman.data.dataset import layout
from realman.data.dataset.pool import InlineExecutor
from realman.data.dataset.pool import WorkerPool
from realman.data.dataset.stats import sample_frames
from realman.data.raw import find_episodes
from realman.errors import EpisodeError
from realman.errors import FlagError

NUM_FRAMES = 60


def arguments(folder, **options):
    return convert.Args(raw_dir=folder / "raw", root=folder / "out", **{"workers": 1, **options})


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def write_with_fault(tmp_path, write_recording, monkeypatch):
    """Two recordings. In the second one, `cam_low` shows `image(t)`."""

    def write(image, form="jpeg_padded"):
        module = write_recording.__globals__
        good = module["picture"]
        options = {"num_frames": NUM_FRAMES, "size": (24, 32), "form": form}
        write_recording(tmp_path / "raw" / "episode_0.hdf5", **options)
        monkeypatch.setitem(module, "picture", lambda t, i, *rest: image(t) if i == 1 else good(t, i, *rest))
        write_recording(tmp_path / "raw" / "episode_1.hdf5", **options)
        monkeypatch.undo()
        return tmp_path

    return write


def noise(t):
    return np.random.default_rng(t).integers(0, 255, (24, 32, 3), np.uint8)


FAULTS = {
    "frozen": (lambda t: noise(min(t, 5)), "shows the same image for 1.1 s from frame 5 while the arm moves"),
    "black": (lambda t: noise(t) * (t != 37), "is black at frame 37"),
}


@pytest.mark.parametrize("form", ["jpeg_padded", "raw"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_camera_that_fails_in_the_middle_makes_the_episode_bad(write_with_fault, fault, form):
    image, message = FAULTS[fault]
    folder = write_with_fault(image, form)
    with pytest.raises(EpisodeError, match=f"episode_1.hdf5: 'observations/images/cam_low' {message}"):
        convert.main(arguments(folder))
    args = arguments(folder, skip_bad=True)
    convert.main(args)
    (rejected,) = json.loads((args.target / layout.REJECTED).read_text())
    assert rejected["source"] == "episode_1.hdf5"
    assert message in rejected["reason"]
    assert len(layout.read_json_lines(args.target / layout.EPISODES)) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_person_who_knows_better_can_accept_it(write_with_fault, fault):
    args = arguments(write_with_fault(FAULTS[fault][0]), accept=(fault,))
    convert.main(args)
    assert len(layout.read_json_lines(args.target / layout.EPISODES)) == 2
    assert not (args.target / layout.REJECTED).exists()


def test_a_black_jpeg_is_found_although_it_is_not_sampled(tmp_path, write_recording, monkeypatch):
    assert 150 not in sample_frames(300)
    monkeypatch.setitem(write_recording.__globals__, "picture", lambda t, *rest: noise(t) * (t != 150))
    options = {"num_frames": 300, "cameras": ("cam_high",), "size": (24, 32)}
    write_recording(tmp_path / "raw" / "episode_0.hdf5", **options)
    with pytest.raises(EpisodeError, match="cam_high' is black at frame 150"):
        convert.main(arguments(tmp_path, cameras=("cam_high",)))


def test_raw_frames_can_become_jpegs_of_a_chosen_quality(tmp_path, write_recording):
    truth = write_recording(tmp_path / "raw" / "episode_0.hdf5", form="raw", num_frames=2, size=(96, 128))
    sizes = {}
    for quality in (30, 95):
        args = arguments(tmp_path, image_format="jpg", jpeg_quality=quality, repo_id=f"q/{quality}")
        convert.main(args)
        cell = pq.read_table(args.target / layout.data_path(0))[spec.image_key("cam_high")][1].as_py()
        assert cell["path"] == "frame_000001.jpg"
        shown = cv2.imdecode(np.frombuffer(cell["bytes"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        errors = np.abs(shown.astype(int) - truth.frames["cam_high"][1])
        assert errors.mean() < 20
        sizes[quality] = len(cell["bytes"])
    assert sizes[30] < sizes[95]


def test_a_jpeg_quality_beyond_the_scale_is_refused(tmp_path, tiny_recordings):
    with pytest.raises(FlagError, match=r"--jpeg-quality: found 101, expected 1 to 100"):
        convert.Args(raw_dir=tiny_recordings, root=tmp_path, jpeg_quality=101)


@pytest.mark.parametrize("options", [{}, {"color": "bgr"}, {"mode": "video", "video_codec": "h264"}])
def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path, tiny_recordings, options):
    found = []
    for threads in (1, 3):
        args = convert.Args(raw_dir=tiny_recordings, root=tmp_path / str(threads), **options)
        request = conversion.ConversionRequest(
            find_episodes(tiny_recordings), args.target, args.options, spec.CAMERAS, args.storage, "realman"
        )
        conversion.convert(request, WorkerPool(InlineExecutor(), 1, threads=threads))
        found.append(content(args.target))
    assert found[0] == found[1]


def test_cameras_are_renamed_on_the_way(tmp_path, tiny_recordings):
    swap = ("cam_left_wrist=cam_right_wrist", "cam_right_wrist=cam_left_wrist")
    plain = convert.Args(raw_dir=tiny_recordings, root=tmp_path / "plain", workers=1)
    swapped = convert.Args(raw_dir=tiny_recordings, root=tmp_path / "swapped", workers=1, camera_map=swap)
    tables = []
    for args in (plain, swapped):
        convert.main(args)
        tables.append(pq.read_table(args.target / layout.data_path(0)))
    left, right = spec.image_key("cam_left_wrist"), spec.image_key("cam_right_wrist")
    assert tables[0][left].to_pylist() == tables[1][right].to_pylist()
    assert tables[0][right].to_pylist() == tables[1][left].to_pylist()
