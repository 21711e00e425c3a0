"""Collect what a bug report needs in one file, without secrets.

Versions, configuration and the last runs:

    realman support --site site.toml

Read the file before you attach it to a report.
"""

from collections.abc import Callable, Iterator
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys

import realman
from realman.errors import SiteError
from realman.station import redaction
from realman.station import toml_config

_PACKAGES = (
    "openpi-client", "Robotic_Arm", "av", "flax", "h5py", "jax", "jaxlib", "lerobot", "mujoco", "numpy", "openpi",
    "opencv-python-headless", "optax", "orbax-checkpoint", "pyarrow", "pyrealsense2", "torch", "tyro", "websockets",
)  # fmt: skip
_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HOME", "HF_LEROBOT_HOME", "JAX_PLATFORMS", "MUJOCO_GL",
    "OPENPI_DATA_HOME", "REALMAN_DEBUG", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION",
)  # fmt: skip
_TITLE = "# realman support"
_LOG_LINES = 40
_TAIL_BYTES = 64 * 1024
_MAX_FILE_BYTES = 1024 * 1024
_PROGRAM_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of `realman support`."""

    site: Path | None = None
    """Your site.toml. By default the one in examples/realman, if there is one."""
    out: Path = Path("support.txt")
    """The file to write. Only an earlier report is replaced."""
    runs_dir: Path = Path("data")
    """Where runs of the client and of the demo leave their figures and logs."""
    checkpoints_dir: Path = Path("checkpoints")
    """Where training runs leave their configuration and logs."""


def main(args: Args) -> int:
    """Write versions, configuration and the last logs to one file, without secrets."""
    if args.site is not None and not args.site.is_file():
        raise SiteError(f"{args.site}: not a file. Leave --site out to report without it")
    text = "\n".join([_TITLE, *_sections(args)]) + "\n"
    try:
        _check_target(args.out)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    except OSError as e:
        raise SiteError(f"{args.out}: cannot be written ({e.strerror}). Choose another file with --out") from e
    sys.stdout.write(f"{args.out}\n")
    sys.stderr.write("Read this file before you attach it to a report. It holds your settings and host names.\n")
    return 0


def _check_target(path: Path) -> None:
    """Refuse to replace a file that is not an earlier report."""
    if path.is_file():
        with path.open("rb") as file:
            if not file.read(len(_TITLE)).startswith(_TITLE.encode()):
                raise SiteError(f"{path}: already exists and is not a report. Choose another file with --out")


def _sections(args: Args) -> Iterator[str]:
    yield from _versions()
    yield from _environment()
    site = args.site or Path("examples/realman/site.toml")
    yield from _parsed("site", site, lambda text: redaction.settings(toml_config.parse(text)))

    # The newest of each kind: what you ran last is what the report is about.
    run = _newest(args.runs_dir, "**/run.json")
    yield from _parsed("last run of the client", run, lambda text: redaction.settings(json.loads(text)))
    yield from _log("last policy server of the demo", _newest(args.runs_dir, "**/server.log"), redaction.line)
    config = _newest(args.checkpoints_dir, "*/*/config.json")
    yield from _parsed("last training run", config, lambda text: redaction.settings(json.loads(text)))
    log = _newest(args.checkpoints_dir, "*/*/train_log.jsonl")
    yield from _log("log of the last training run", log, lambda row: ", ".join(redaction.settings(json.loads(row))))


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
            yield f"{name}={redaction.line(os.environ[name])}"
    for name in redaction.SECRET_VARIABLES:
        yield f"{name} is {'set' if os.environ.get(name) else 'not set'}"


def _parsed(title: str, path: Path | None, read: Callable[[str], Iterator[str]]) -> Iterator[str]:
    """Yield a heading and the settings of a file.

    Text that cannot be parsed is not shown, because it may hold anything.
    """
    yield f"\n## {title}"
    if path is None or not path.is_file():
        yield "none found"
        return
    yield redaction.line(f"# {path}")
    try:
        with path.open("rb") as file:
            lines = list(read(file.read(_MAX_FILE_BYTES).decode()))
    except OSError as e:
        lines = [f"could not be read ({e.strerror})"]
    except ValueError as e:
        # Of TOML, JSON and UTF-8 alike. The message may quote the text.
        lines = [f"could not be parsed ({type(e).__name__})"]
    yield from lines


def _log(title: str, path: Path | None, show: Callable[[str], str]) -> Iterator[str]:
    """Yield a heading and the last lines of a log."""
    yield f"\n## {title}"
    if path is None or not path.is_file():
        yield "none found"
        return
    yield redaction.line(f"# {path}")
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            rows = file.read(_TAIL_BYTES).decode(errors="replace").splitlines()[-_LOG_LINES:]
    except OSError as e:
        yield f"could not be read ({e.strerror})"
        return
    for row in rows:
        try:
            yield show(row)
        except ValueError:
            yield "(not a JSON row)"


def _newest(folder: Path, pattern: str) -> Path | None:
    files = [path for path in folder.glob(pattern) if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def _revision() -> str:
    """Return the revision of a git checkout, and whether it has changes."""
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
    try:
        result = subprocess.run(command, capture_output=True, check=False, timeout=_PROGRAM_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{command[0]}: {type(e).__name__}"
    return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else ""
