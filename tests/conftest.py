"""Common to all tests: JAX on the CPU, no network, the folder of golden files, and recordings with the truth that went into them."""

from collections.abc import Sequence
import dataclasses
import logging
import os
from pathlib import Path
import subprocess
import sys
from typing import Any, Protocol

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["OPENPI_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import cv2
import h5py
import hypothesis
import numpy as np
import pytest

from realman import spec

# Continuous integration tries the same examples each time; people try new ones. No test depends on the machine's speed.
hypothesis.settings.register_profile("tests", derandomize=bool(os.environ.get("CI")), deadline=None)
hypothesis.settings.load_profile("tests")

ROOT = Path(__file__).resolve().parents[1]
IMAGE_FORMS = ("jpeg_padded", "jpeg_variable", "jpeg_strings", "raw")
TASK = "put the cube into the tray"


@pytest.fixture(autouse=True)
def _log_handlers_end_with_their_test():
    """Remove what a command added to the root logger.

    Its stream is that of the test, so a later test would see errors of logging instead of its own lines.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is marked `own_process` in another pytest."""
    if not pyfuncitem.get_closest_marker("own_process") or os.environ.get("TEST_IN_OWN_PROCESS"):
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", pyfuncitem.nodeid]
    environment = {**os.environ, "TEST_IN_OWN_PROCESS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return True


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The top folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers and files made by the original openpi and LeRobot; see `tests/golden/README.md`."""
    return ROOT / "tests" / "golden"


@dataclasses.dataclass(frozen=True)
class Recording:
    """What a recording holds, in the numbers of its file."""

    path: Path
    state: np.ndarray
    action: np.ndarray
    frames: dict[str, np.ndarray]
    """What a reader should see, (T, h, w, 3) RGB."""
    jpegs: dict[str, list[bytes]]
    """The encoded frames; empty for raw ones."""


class WriteRecording(Protocol):
    """The type of the fixture `write_recording`."""

    def __call__(self, path: Path, **options: Any) -> Recording: ...


def smooth_motion(num_frames: int, seed: int = 0) -> np.ndarray:
    """(T, 14) rad and gripper fractions, inside all limits."""
    t = np.arange(num_frames)[:, None] / 50
    return 0.5 + 0.45 * np.sin(3 * t + 0.4 * np.arange(spec.NUM_DIMS) + seed)


def picture(t: int, camera_index: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """A smooth colourful frame that differs by frame, camera and episode."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(0.1 * y * (c + 1) + 0.07 * x + 0.2 * t + camera_index + seed) for c in range(3)]
    return np.floor(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


def _store_jpegs(group: h5py.Group, name: str, jpegs: list[bytes], form: str) -> None:
    if form == "jpeg_padded":
        width = max(map(len, jpegs)) + 5
        rows = [np.frombuffer(j.ljust(width, b"\0"), np.uint8) for j in jpegs]
        group.create_dataset(name, data=np.stack(rows))
    elif form == "jpeg_variable":
        data = group.create_dataset(name, (len(jpegs),), dtype=h5py.vlen_dtype(np.uint8))
        for t, jpeg in enumerate(jpegs):
            data[t] = np.frombuffer(jpeg, np.uint8)
    else:
        group.create_dataset(name, data=np.array(jpegs, dtype=f"S{max(map(len, jpegs))}"))


def _write_recording(
    path: Path,
    *,
    num_frames: int = 6,
    cameras: Sequence[str] = spec.CAMERAS,
    size: tuple[int, int] = (48, 64),
    form: str = "jpeg_padded",
    state: np.ndarray | None = None,
    action: np.ndarray | None = None,
    optional: bool = True,
    fps: int | None = 50,
    task: str | None = TASK,
    seed: int = 0,
) -> Recording:
    state = smooth_motion(num_frames, seed) if state is None else state
    action = smooth_motion(num_frames, seed + 1) if action is None else action
    frames, jpegs = {}, {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["observations/qpos"] = state
        file["action"] = action
        if optional:
            file["observations/qvel"] = 0.1 * state
            file["observations/effort"] = 10 * state
        if fps is not None:
            file.attrs["fps"] = fps
        if task is not None:
            file.attrs["language_instruction"] = task
        images = file.create_group("observations/images")
        for i, camera in enumerate(cameras):
            rgb = np.stack([picture(t, i, size, seed) for t in range(num_frames)])
            if form == "raw":
                images.create_dataset(camera, data=rgb)
                frames[camera] = rgb
                continue
            jpegs[camera] = [
                cv2.imencode(".jpg", f[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for f in rgb
            ]
            decoded = [cv2.imdecode(np.frombuffer(j, np.uint8), cv2.IMREAD_COLOR) for j in jpegs[camera]]
            frames[camera] = np.stack(decoded)[..., ::-1]
            _store_jpegs(images, camera, jpegs[camera], form)
    return Recording(path, state, action, frames, jpegs)


@pytest.fixture(scope="session")
def write_recording() -> WriteRecording:
    """A function that writes a recording and returns the truth; see `_write_recording` for its options."""
    return _write_recording


@pytest.fixture(scope="session")
def tiny_recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three short JPEG recordings, 48x64 px, 50 fps, two tasks. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("recordings")
    for i, num_frames in enumerate((12, 9, 7)):
        task = TASK if i != 1 else "hand over the cube"
        _write_recording(folder / f"episode_{i}.hdf5", num_frames=num_frames, seed=i, task=task)
    return folder
