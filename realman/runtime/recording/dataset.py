"""The recordings of a run as a LeRobot dataset, where the packages for it are installed; else the command that makes it."""

import importlib.util
import logging
from pathlib import Path

from realman import spec
from realman.data.raw.episode import open_episode
from realman.data.raw.folder import find_episodes
from realman.errors import SiteError

logger = logging.getLogger(__name__)

_NEEDED = ("pyarrow", "tqdm", "psutil")


def can_convert() -> bool:
    """Whether this installation can write datasets; a robot PC need not."""
    return all(importlib.util.find_spec(name) for name in _NEEDED)


def check_target(repo_id: str) -> None:
    """Refuse a dataset that exists already, before anything is recorded.

    Raises:
        SiteError: This installation cannot write datasets.
        DatasetError: The dataset exists, or the name is none.
    """
    if not can_convert():
        raise SiteError(
            f"--record-repo-id: needs {', '.join(_NEEDED)}, which a robot PC lacks; leave it out, and run "
            "'make convert' on the recordings where the training runs"
        )
    from realman.data import convert
    from realman.data.dataset import staging

    staging.check_target(convert.dataset_dir(None, repo_id), overwrite=False)


def convert(folder: Path, repo_id: str) -> int:
    """Make a LeRobot v2.1 dataset of all recordings of a folder; return an exit code.

    Raises:
        EpisodeError: A recording is bad.
        DatasetError: The dataset cannot be written.
    """
    from realman.data import convert as _convert

    return _convert.main(_convert.Args(raw_dir=folder, repo_id=repo_id, cameras=cameras_of(folder)))


def cameras_of(folder: Path) -> tuple[str, ...]:
    """Cameras of the first recording of a folder."""
    with open_episode(find_episodes(folder)[0]) as episode:
        return episode.cameras


def command(folder: Path) -> str:
    """The command that makes a dataset of a folder, for messages."""
    cameras = cameras_of(folder)
    flags = "" if cameras == spec.CAMERAS else f" ARGS='--cameras {' '.join(cameras)}'"
    return f"make convert DATA={folder} REPO_ID=realman/rollouts{flags}"
