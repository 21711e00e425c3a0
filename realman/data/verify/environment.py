"""Install lerobot's own Python environment from its hash-pinned lock."""

import logging
import os
from pathlib import Path
import subprocess
import sys

from realman.errors import DatasetError

logger = logging.getLogger(__name__)

_PROJECT = Path(__file__).resolve().parents[3]
VENV = _PROJECT / ".venv-lerobot"
LOCK = _PROJECT / "requirements" / "lerobot.lock"


def lerobot_python() -> Path:
    """Return the environment's interpreter, and install it if needed.

    The first call and the first one after a change of the lock install it, which downloads about 3 GB.

    Raises:
        DatasetError: It cannot be installed.
    """
    python, ready = VENV / "bin" / "python", VENV / ".ready"
    if not LOCK.is_file():
        raise DatasetError(f"{LOCK}: is missing. Run from a checkout, or give --lerobot-python")
    if ready.is_file() and ready.stat().st_mtime > LOCK.stat().st_mtime:
        return python
    logger.info("installing lerobot into %s: downloads about 3 GB and needs 5 GB of disk", VENV)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(VENV)])
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        _run([str(uv), "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(LOCK)])
    else:
        # The lock leaves out packages on purpose, so pip must not ask for them.
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(LOCK)])
    ready.touch()
    return python


def offline_settings(cache: Path) -> dict[str, str]:
    """Return environment variables that keep the library offline.

    It then keeps its copies in `cache`.
    """
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")}


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as e:
        raise DatasetError(
            f"{VENV}: lerobot could not be installed ({e}). Fix that, or give --lerobot-python of another environment"
        ) from e
