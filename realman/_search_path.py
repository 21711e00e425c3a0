"""Let this environment's packages win against those that PYTHONPATH adds.

A sourced ROS 2 puts packages of another Python there. They stay available, because the driver of a camera may be among
them.
"""

import os
from pathlib import Path
import sys

# Where these are, PYTHONPATH names this project's own source folders.
_OURS = ("realman", "openpi", "openpi_client")


def put_own_first() -> None:
    """Move other entries of PYTHONPATH to the end of the search path."""
    added = {Path(entry).absolute() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    foreign = [each for each in sys.path if each and Path(each).absolute() in added and not _is_ours(Path(each))]
    sys.path[:] = [each for each in sys.path if each not in foreign] + foreign


def _is_ours(folder: Path) -> bool:
    return any((folder / name / "__init__.py").is_file() for name in _OURS)
