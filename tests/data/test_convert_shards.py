"""Datasets built by several machines or by other people's executors equal those built at once."""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import importlib.util
import shutil

import h5py
import pytest

from realman import spec
from realman.data import convert
from realman.data.dataset import conversion
from realman.data.dataset import layout
from realman.data.dataset.from_raw import RawJob
from realman.data.dataset.pool import WorkerPool
from realman.data.dataset.staging import Shard
from realman.data.dataset.staging import Staging
from realman.data.dataset.staging import parse_shard
from realman.data.raw import find_episodes
from realman.errors import DatasetError
from realman.errors import EpisodeError

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="Dask is not installed: pip install 'dask[distributed]'"
)


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def arguments(raw_dir, root, **options):
    return convert.Args(raw_dir=raw_dir, root=root, **{"workers": 1, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_recordings):
    """The dataset of the tiny recordings, converted at once: every file's bytes."""
    args = arguments(tiny_recordings, tmp_path_factory.mktemp("whole"))
    convert.main(args)
    return content(args.target)


def request_of(args):
    return conversion.ConversionRequest(
        find_episodes(args.raw_dir), args.target, args.options, spec.CAMERAS, args.storage, convert.DEFAULT_ROBOT_TYPE
    )


def test_any_executor_gives_the_same_dataset(tmp_path, tiny_recordings, whole):
    args = arguments(tiny_recordings, tmp_path)
    with ThreadPoolExecutor(3) as executor:
        conversion.convert(request_of(args), WorkerPool(executor, 3, threads=2))
    assert content(args.target) == whole


@needs_dask
def test_a_dask_cluster_gives_the_same_dataset(tmp_path, tiny_recordings, whole):
    distributed = importlib.import_module("distributed")
    args = arguments(tiny_recordings, tmp_path, workers=None)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", scheduler_port=0, dashboard_address=None
    ) as cluster:
        args = dataclasses.replace(args, dask=cluster.scheduler_address)
        convert.main(args)
        # An error of the work comes back as it is, not as one of the cluster.
        with pytest.raises(EpisodeError, match="camera 'cam_top' is missing"):
            convert.main(dataclasses.replace(args, overwrite=True, cameras=("cam_top",)))
    assert content(args.target) == whole


@needs_dask
def test_a_scheduler_that_does_not_answer_is_an_error_of_one_line(tmp_path, tiny_recordings, monkeypatch):
    monkeypatch.setattr("realman.data.dataset.pool._DASK_TIMEOUT_S", 1)
    args = arguments(tiny_recordings, tmp_path, workers=None, dask="tcp://127.0.0.1:9")
    with pytest.raises(DatasetError, match="no Dask scheduler answers"):
        convert.main(args)


@pytest.mark.skipif(importlib.util.find_spec("distributed") is not None, reason="Dask is installed")
def test_without_dask_the_flag_says_what_to_install(tmp_path, tiny_recordings):
    args = arguments(tiny_recordings, tmp_path, workers=None, dask="tcp://127.0.0.1:9")
    with pytest.raises(DatasetError, match="pip install"):
        convert.main(args)


@pytest.mark.parametrize("count", [2, 5])
def test_merged_shards_equal_the_whole_to_the_byte(tmp_path, tiny_recordings, whole, monkeypatch, count):
    for number in range(1, count + 1):
        # Each machine has its own disk, and sees the recordings under its own path.
        recordings = tmp_path / f"mount_{number}"
        recordings.symlink_to(tiny_recordings)
        args = arguments(recordings, tmp_path / str(number), shard=f"{number}/{count}")
        convert.main(args)
        assert not args.target.exists()
        part = Staging(args.target, Shard(number, count)).path
        target = tmp_path / "merged" / "realman"
        target.mkdir(parents=True, exist_ok=True)
        shutil.move(part, target)
    monkeypatch.setattr(RawJob, "build", lambda job, context: pytest.fail("a finished episode was built again"))
    args = arguments(tiny_recordings, tmp_path / "merged", merge=True)
    convert.main(args)
    assert content(args.target) == whole
    assert [p.name for p in args.target.parent.iterdir()] == ["dual_arm"]


def test_a_merge_that_was_killed_resumes(tmp_path, tiny_recordings, whole, monkeypatch):
    for number in (1, 2):
        convert.main(arguments(tiny_recordings, tmp_path, shard=f"{number}/2"))
    args = arguments(tiny_recordings, tmp_path, merge=True)
    monkeypatch.setattr(Staging, "publish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert convert.main(args) == 130
    monkeypatch.undo()
    monkeypatch.setattr(RawJob, "build", lambda job, context: pytest.fail("a finished episode was built again"))
    convert.main(args)
    assert content(args.target) == whole


def test_damage_found_by_a_shard_moves_the_episodes_behind_it_up(tmp_path, tiny_recordings):
    recordings = shutil.copytree(tiny_recordings, tmp_path / "raw")
    with h5py.File(recordings / "episode_1.hdf5", "r+") as file:
        file["observations/images/cam_high"][3, 100:] = 0
    common = {"skip_bad": True}
    expected = arguments(recordings, tmp_path / "expected", **common)
    convert.main(expected)
    convert.main(arguments(recordings, tmp_path / "out", shard="1/2", **common))
    with pytest.raises(EpisodeError, match="is a JPEG cut off"):
        convert.main(arguments(recordings, tmp_path / "out", shard="2/2"))
    args = arguments(recordings, tmp_path / "out", merge=True, **common)
    convert.main(args)
    assert content(args.target) == content(expected.target)
    assert (args.target / layout.REJECTED).is_file()


def test_a_merge_names_the_shards_that_are_missing(tmp_path, tiny_recordings):
    args = arguments(tiny_recordings, tmp_path, merge=True)
    with pytest.raises(DatasetError, match="no shards to merge"):
        convert.main(args)
    convert.main(arguments(tiny_recordings, tmp_path, shard="2/3"))
    with pytest.raises(DatasetError, match="Build them first: --shard 1/3, --shard 3/3"):
        convert.main(args)
    convert.main(arguments(tiny_recordings, tmp_path, shard="1/2"))
    with pytest.raises(DatasetError, match=r"different divisions \(\[2, 3\]\)"):
        convert.main(args)


def test_a_shard_that_is_still_being_built_is_not_merged(tmp_path, tiny_recordings):
    args = arguments(tiny_recordings, tmp_path, merge=True)
    for number in (1, 2):
        convert.main(arguments(tiny_recordings, tmp_path, shard=f"{number}/2"))
    with Staging(args.target, Shard(2, 2)), pytest.raises(DatasetError, match="another conversion is writing it"):
        convert.main(args)


@pytest.mark.parametrize(
    ("text", "message"), [("1", "is not NUMBER/COUNT"), ("0/2", "does not exist"), ("3/2", "does not exist")]
)
def test_shards_that_make_no_sense_are_refused(text, message):
    with pytest.raises(DatasetError, match=message):
        parse_shard(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "1/2", "merge": True}, "Give only one of them"),
        ({"dask": "tcp://127.0.0.1:9", "workers": 2}, "Leave --workers out"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(tmp_path, tiny_recordings, options, message):
    with pytest.raises(DatasetError, match=message):
        convert.main(arguments(tiny_recordings, tmp_path, **options))
