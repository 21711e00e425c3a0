"""Simulation of one episode and its ALOHA-style HDF5 file.

Layout of the file:

    /observations/{qpos,qvel,effort}, /action   (T, 14) float32
    /observations/images/<camera>               (T, longest) uint8, each row a JPEG padded with zeros
    /compress_len                               (cameras, T) int32, bytes of each JPEG
    attributes                                  `sim`, `compress`, `fps`, `language_instruction`, `seed`
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

import cv2
import h5py
from jaxtyping import Float
import mujoco
import numpy as np

from realman import spec
from realman.arrays import Image
from realman.arrays import JointTraj
from realman.errors import EpisodeError
from realman.errors import RobotError
from realman.robots.sim import task
from realman.robots.sim.render import Renderer
from realman.robots.sim.scene import Layout
from realman.robots.sim.scene import Scene

JPEG_QUALITY = 95

_MAX_ATTEMPTS = 20
"""This many failures in a row mean that the scene is broken, not that the draws were unlucky."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """The motion of one successful episode.

    Row t holds what was measured when `action[t]` was commanded.
    """

    seed: tuple[int, ...]
    layout: Layout
    state: JointTraj
    velocity: JointTraj
    effort: JointTraj
    action: JointTraj
    configuration: Float[np.ndarray, "t q"]
    """Positions of the whole scene in MuJoCo's own coordinates. The images are drawn from them."""
    num_failed: int
    """Draws before this one that did not end with the cube in the tray."""


def simulate(scene: Scene, seed: tuple[int, ...], fps: float) -> Rollout:
    """Run the scripted task, with fresh draws until one succeeds.

    The same seed gives the same episode.

    Args:
        scene: The cell, which is reset.
        seed: Non-negative numbers that identify the episode.
        fps: Rate of the recording, Hz.

    Raises:
        RobotError: Too many draws in a row failed.
    """
    for attempt in range(_MAX_ATTEMPTS):
        rng = np.random.default_rng([*seed, attempt])
        layout = task.draw_layout(rng)
        plan = task.draw_plan(scene, layout, rng)
        scene.reset(layout)
        measured = []
        actions = plan.targets(fps)
        for tick, action in enumerate(actions):
            measured.append((scene.state(), scene.velocity(), scene.effort(), scene.data.qpos.copy()))
            scene.command(action)
            scene.advance_to((tick + 1) / fps)
        if scene.is_cube_in_tray():
            state, velocity, effort, configuration = (np.stack(rows) for rows in zip(*measured, strict=True))
            return Rollout(seed, layout, state, velocity, effort, actions, configuration, num_failed=attempt)
    raise RobotError(f"simulated task: {_MAX_ATTEMPTS} draws in a row failed (seed {seed}). Did the scene change?")


def write_episode(path: Path, scene: Scene, rollout: Rollout, renderer: Renderer, fps: float) -> None:
    """Draw the images and write the file.

    The file appears under its name only when it is complete.

    Raises:
        EpisodeError: The file cannot be written.
    """
    jpegs = _draw_cameras(scene, rollout, renderer)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(partial, rollout, jpegs, fps)
        partial.replace(path)
    except OSError as e:
        raise EpisodeError(f"{path}: cannot be written ({e}). Choose another folder or free some space") from e


def _write_file(path: Path, rollout: Rollout, jpegs: Mapping[str, list[np.ndarray]], fps: float) -> None:
    vectors = {
        "observations/qpos": rollout.state,
        "observations/qvel": rollout.velocity,
        "observations/effort": rollout.effort,
        "action": rollout.action,
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {"sim": True, "compress": True, "fps": fps, "language_instruction": task.TASK, "seed": rollout.seed}
        )
        for name, values in vectors.items():
            file.create_dataset(name, data=values.astype(np.float32))
        _write_images(file, jpegs)


def _draw_cameras(scene: Scene, rollout: Rollout, renderer: Renderer) -> dict[str, list[np.ndarray]]:
    scene.reset(rollout.layout)  # also sets the colors and the tray's position
    jpegs: dict[str, list[np.ndarray]] = {camera: [] for camera in spec.CAMERAS}
    for configuration in rollout.configuration:
        scene.data.qpos[:] = configuration
        mujoco.mj_forward(scene.model, scene.data)
        for camera, frames in jpegs.items():
            frames.append(encode_jpeg(renderer.render(scene.data, camera)))
    return jpegs


def _write_images(file: h5py.File, jpegs: Mapping[str, list[np.ndarray]]) -> None:
    lengths = np.array([[len(jpeg) for jpeg in frames] for frames in jpegs.values()], np.int32)
    file.create_dataset("compress_len", data=lengths)
    for (camera, frames), sizes in zip(jpegs.items(), lengths, strict=True):
        rows = np.zeros((len(frames), sizes.max()), np.uint8)
        for row, jpeg in zip(rows, frames, strict=True):
            row[: len(jpeg)] = jpeg
        file.create_dataset(f"observations/images/{camera}", data=rows, chunks=(1, rows.shape[1]))


def encode_jpeg(image: Image) -> np.ndarray:
    """Encode an RGB image as a standard JPEG, a flat uint8 array."""
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return jpeg.reshape(-1)


def count_frames(path: Path) -> int:
    """Return the number of frames of a recording made here.

    Raises:
        EpisodeError: The file is damaged or is not such a recording.
    """
    try:
        with h5py.File(path) as file:
            counts = {len(file[name]) for name in ("action", "observations/qpos")}
            counts |= {len(file[f"observations/images/{camera}"]) for camera in spec.CAMERAS}
    except (OSError, KeyError) as e:
        raise EpisodeError(f"{path}: not a complete recording ({e}). Remove it or record with --overwrite") from e
    if len(counts) != 1:
        raise EpisodeError(f"{path}: its parts have {sorted(counts)} frames, expected one length. Remove it")
    return counts.pop()
