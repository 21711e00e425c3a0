"""Conversion of a run's recordings to a LeRobot dataset.

It needs packages that a robot PC may lack. There, `command` names the command that makes the dataset elsewhere.
"""

import importlib.util
import logging
from pathlib import Path
import shlex

from realman import spec
from realman.data.raw.episode import open_episode
from realman.data.raw.folder import find_episodes
from realman.errors import SiteError

logger = logging.getLogger(__name__)

_NEEDED = ("pyarrow", "tqdm", "psutil")


def can_convert() -> bool:
    """Return whether this installation can write datasets."""
    return all(importlib.util.find_spec(name) for name in _NEEDED)


def check_target(repo_id: str) -> None:
    """Refuse a dataset that cannot be made, before anything is recorded.

    Raises:
        SiteError: This installation cannot write datasets.
        DatasetError: The dataset already exists, or the name is not valid.
    """
    if not can_convert():
        raise SiteError(
            f"--record-repo-id: needs {', '.join(_NEEDED)}, which a robot PC lacks. Remove the flag, and run "
            "'make convert' on the recordings where you train"
        )
    from realman.data import convert
    from realman.data.dataset import staging

    staging.check_target(convert.dataset_dir(None, repo_id), overwrite=False)


def convert(folder: Path, repo_id: str) -> int:
    """Convert a folder's recordings to a LeRobot v2.1 dataset.

    Returns:
        An exit code.

    Raises:
        EpisodeError: A recording is bad.
        DatasetError: The dataset cannot be written.
    """
    from realman.data import convert as _convert

    return _convert.main(_convert.Args(raw_dir=folder, repo_id=repo_id, cameras=cameras_of(folder)))


def cameras_of(folder: Path) -> tuple[str, ...]:
    """Return the cameras of the first recording of a folder."""
    with open_episode(find_episodes(folder)[0]) as episode:
        return episode.cameras


def command(folder: Path) -> str:
    """Return the command that makes a dataset of a folder, for messages."""
    cameras = cameras_of(folder)
    flags = "" if cameras == spec.CAMERAS else f" ARGS='--cameras {' '.join(cameras)}'"
    return f"make convert DATA={shlex.quote(str(folder))} REPO_ID=realman/rollouts{flags}"
