"""Collect what a bug report needs in one text file: versions, configuration, the last runs. No secrets.

    realman support --site site.toml

Read the file before you attach it to a report.
"""

from collections.abc import Iterator
import dataclasses
import importlib.metadata
import os
from pathlib import Path
import platform
import re
import shutil
import subprocess
import sys

import realman
from realman.errors import SiteError

_PACKAGES = (
    "openpi-client", "Robotic_Arm", "av", "flax", "h5py", "jax", "jaxlib", "lerobot", "mujoco", "numpy", "openpi",
    "opencv-python-headless", "optax", "orbax-checkpoint", "pyarrow", "pyrealsense2", "torch", "tyro", "websockets",
)  # fmt: skip
_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HOME", "HF_LEROBOT_HOME", "JAX_PLATFORMS", "MUJOCO_GL",
    "OPENPI_DATA_HOME", "REALMAN_DEBUG", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION",
)  # fmt: skip
_SECRETS = ("HF_TOKEN", "REALMAN_API_KEY", "WANDB_API_KEY")
"""Variables of which only their presence is said, and whose values are blanked wherever they occur."""

_SECRET_LINE = re.compile(
    r"""(?im)^(?P<key>[\s"'-]*[\w.-]*(?:key|token|password|passwd|secret|credential)[\w.-]*["']?\s*[=:]\s*).+$"""
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_HIDDEN = "[hidden]"
_LOG_LINES = 40


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of `realman support`."""

    site: Path | None = None
    """Your site.toml. By default the one in examples/realman, if there is one."""
    out: Path = Path("support.txt")
    """The file to write."""
    runs_dir: Path = Path("data")
    """Where runs of the client and of the demo leave their figures and logs."""
    checkpoints_dir: Path = Path("checkpoints")
    """Where training runs leave their configuration and logs."""


def main(args: Args) -> int:
    """Write versions, configuration and the last logs to one file, without secrets."""
    if args.site is not None and not args.site.is_file():
        raise SiteError(f"{args.site}: no such file. Leave --site out to report without it")
    text = hide_secrets("\n".join(_sections(args)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{args.out}\n")
    sys.stderr.write("Read this file before you attach it to a report. It holds your settings and host names.\n")
    return 0


def hide_secrets(text: str) -> str:
    """Blank the values of keys, tokens and passwords, the logins in addresses, and your home folder's path."""
    for name in _SECRETS:
        value = os.environ.get(name)
        if value:
            text = text.replace(value, _HIDDEN)
    text = _SECRET_LINE.sub(rf"\g<key>{_HIDDEN}", text)
    text = _URL_LOGIN.sub(_HIDDEN, text)
    home = str(Path.home())
    return text.replace(home, "~") if home != "/" else text


def _sections(args: Args) -> Iterator[str]:
    yield "# realman support"
    yield from _versions()
    yield from _environment()

    site = args.site or Path("examples/realman/site.toml")
    yield from _file("site", site, whole=True)

    # The newest of each kind: what you ran last is what the report is about.
    yield from _file("last run of the client", _newest(args.runs_dir, "**/run.json"), whole=True)
    yield from _file("last policy server of the demo", _newest(args.runs_dir, "**/server.log"))
    yield from _file(
        "configuration of the last training run", _newest(args.checkpoints_dir, "*/*/config.json"), whole=True
    )
    yield from _file("log of the last training run", _newest(args.checkpoints_dir, "*/*/train_log.jsonl"))


def _versions() -> Iterator[str]:
    yield "\n## versions"
    yield f"realman-openpi {realman.__version__}{_revision()}"
    yield f"Python {platform.python_version()}, {platform.platform()}, {platform.machine()}, {os.cpu_count()} cores"
    for package in _PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} not installed"
    yield (
        _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
        or "no NVIDIA GPU"
    )


def _environment() -> Iterator[str]:
    yield "\n## environment"
    for name in _ENVIRONMENT:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"
    for name in _SECRETS:
        yield f"{name} is {'set' if os.environ.get(name) else 'not set'}"


def _file(title: str, path: Path | None, *, whole: bool = False) -> Iterator[str]:
    """A heading and the file's text, or its last lines."""
    yield f"\n## {title}"
    if path is None or not path.is_file():
        yield "none found"
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    yield f"# {path}"
    yield from lines if whole else lines[-_LOG_LINES:]


def _newest(folder: Path, pattern: str) -> Path | None:
    files = [path for path in folder.glob(pattern) if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def _revision() -> str:
    """Where the tree is a git checkout: its revision, and whether it has changes."""
    tree = Path(realman.__file__).resolve().parents[1]
    if not (tree / ".git").exists():
        return ""
    revision = _output("git", "-C", str(tree), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(tree), "status", "--porcelain", "--untracked-files=no")
    return f" ({revision}{', with local changes' if changed else ''})" if revision else ""


def _output(*command: str) -> str:
    """What a program prints, or nothing if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return result.stdout.strip() if result.returncode == 0 else ""
