"""`realman support`: collect what a bug report needs in one file.

    realman support --site site.toml

The file holds versions, configuration and the last runs, without secrets. Read it before you attach it to a report.
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
"""Variables whose values are secret. The file says only whether they are set. Their values are blanked everywhere."""

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
    """Where runs of the client and the demo write their figures and logs."""
    checkpoints_dir: Path = Path("checkpoints")
    """Where training runs write their configuration and logs."""


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
    """Return a text without secrets.

    It blanks the values of keys, tokens and passwords and the logins in addresses, and shortens your home folder to
    `~`.
    """
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

    # Take the newest file of each kind, because the report is about what you ran last.
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
    """Yield a heading and the file's text or last lines."""
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
    """Return a git checkout's revision and whether it has changes.

    Return an empty text if the tree is not a git checkout.
    """
    tree = Path(realman.__file__).resolve().parents[1]
    if not (tree / ".git").exists():
        return ""
    revision = _output("git", "-C", str(tree), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(tree), "status", "--porcelain", "--untracked-files=no")
    return f" ({revision}{', with local changes' if changed else ''})" if revision else ""


def _output(*command: str) -> str:
    """Return what a program prints, or nothing if it fails."""
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return result.stdout.strip() if result.returncode == 0 else ""
