"""Small recordings to attack."""

from pathlib import Path
from typing import Literal

import cv2
import h5py
import numpy as np

from realman import spec

Form = Literal["jpeg_padded", "jpeg_variable", "raw", "gzip"]
FORMS: tuple[Form, ...] = ("jpeg_padded", "jpeg_variable", "raw", "gzip")
TASKS = ("put the cube into the tray", "hand over the cube")


def write_recordings(
    folder: Path,
    *,
    num_episodes: int = 2,
    num_frames: int = 8,
    size_px: tuple[int, int] = (24, 32),
    form: Form = "jpeg_padded",
) -> Path:
    """Write recordings as the teleoperation rig does, and return their folder.

    Args:
        folder: Folder to create.
        num_episodes: Number of recordings.
        num_frames: Frames of the first one. Each further one has one frame less.
        size_px: Height and width of the images.
        form: How images are stored.
    """
    folder.mkdir(parents=True)
    for episode in range(num_episodes):
        _write(folder / f"episode_{episode}.hdf5", episode, num_frames - episode, size_px, form)
    return folder


def _write(path: Path, episode: int, num_frames: int, size_px: tuple[int, int], form: Form) -> None:
    t = np.arange(num_frames)[:, None] / spec.DEFAULT_FPS
    state, action = (0.5 + 0.45 * np.sin(3 * t + 0.4 * np.arange(spec.NUM_DIMS) + episode + i) for i in range(2))
    with h5py.File(path, "w") as file:
        file["observations/qpos"] = state
        file["action"] = action
        file.attrs["fps"] = spec.DEFAULT_FPS
        file.attrs["language_instruction"] = TASKS[episode % len(TASKS)]
        images = file.create_group("observations/images")
        for number, camera in enumerate(spec.CAMERAS):
            pixels = np.stack([_image(frame, number + 5 * episode, size_px) for frame in range(num_frames)])
            _store(images, camera, pixels, form)


def _image(frame: int, number: int, size_px: tuple[int, int]) -> np.ndarray:
    """A smooth image that differs by frame, camera and episode."""
    y, x = np.mgrid[: size_px[0], : size_px[1]]
    waves = [np.sin(0.1 * y * (c + 1) + 0.07 * x + 0.2 * frame + number) for c in range(3)]
    return np.floor(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


def _store(group: h5py.Group, camera: str, pixels: np.ndarray, form: Form) -> None:
    if form in ("raw", "gzip"):
        options = {"compression": "gzip", "chunks": (1, *pixels.shape[1:])} if form == "gzip" else {}
        group.create_dataset(camera, data=pixels, **options)
        return
    jpegs = [cv2.imencode(".jpg", image[..., ::-1])[1] for image in pixels]
    if form == "jpeg_variable":
        data = group.create_dataset(camera, (len(jpegs),), dtype=h5py.vlen_dtype(np.uint8))
        for frame, jpeg in enumerate(jpegs):
            data[frame] = jpeg
        return
    width = max(map(len, jpegs)) + 5
    group.create_dataset(camera, data=np.stack([np.pad(jpeg, (0, width - len(jpeg))) for jpeg in jpegs]))
