"""Replay a recorded episode through the running server and compare the replies.

The policy is asked at frames 0, chunk, 2 * chunk, ... through the robot client's own `PolicyClient`, as the
synchronous loop asks it. The steps that the robot would execute are compared with the recorded actions. The baseline
is the simplest possible policy: hold the position of the last observation. This is open loop: it shows whether data,
units and checkpoint agree, not whether the task succeeds.

Requests that a server recorded (`make serve ARGS=--record`) can be replayed too. They are sent again, and the new
replies are compared with the recorded ones. Two samples of one policy differ by their random start, unless both
servers got the same requests since they started.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from realman import spec
from realman.arrays import Image
from realman.arrays import JointTraj
from realman.arrays import JointVec
from realman.data import checks
from realman.data import raw
from realman.data.dataset import existing
from realman.errors import DatasetError
from realman.errors import EpisodeError
from realman.evaluation.metrics import ActionErrors
from realman.evaluation.metrics import action_errors
from realman.pacing import percentiles_ms
from realman.runtime.client import LeftOver
from realman.runtime.client import PolicyClient

_ROUND_DIGITS = 6
"""Digits after the point of the trajectories in the JSON: a micro-radian."""


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """One recorded episode of any format, in this project's units and order."""

    name: str
    fps: float
    task: str | None
    cameras: tuple[str, ...]
    state: JointTraj
    action: JointTraj
    image: Callable[[str, int], Image]
    """Returns the frame of a camera at a time step, uint8 (h, w, 3) RGB."""


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """One episode's predictions and its recording."""

    recording: Recording
    prompt: str | None
    """Task text that was sent."""
    frames: tuple[int, ...]
    """Frames at which the policy was asked."""
    predicted: JointTraj
    """Action that the client would have executed at each frame (t, 14)."""
    hold: JointTraj
    """Action of the baseline: the state at the last frame at which the policy was asked (t, 14)."""
    round_trips_s: tuple[float, ...]
    infer_s: tuple[float, ...]

    @property
    def errors(self) -> ActionErrors:
        """Errors against the recorded actions."""
        return action_errors(self.predicted, self.recording.action.astype(np.float64), self.hold)


def replay(client: PolicyClient, recording: Recording, prompt: str | None = None) -> Replay:
    """Ask the policy once per chunk along an episode.

    Args:
        client: A connection to the server. It is asked once per `action_chunk` frames.
        recording: The episode.
        prompt: Task text. None takes the episode's own.

    Raises:
        ServerError: The server failed.
    """
    prompt = prompt or recording.task
    total, chunk = len(recording.action), client.action_chunk
    predicted, hold = np.empty((total, spec.NUM_DIMS)), np.empty((total, spec.NUM_DIMS))
    frames = tuple(range(0, total, chunk))
    round_trips_s, infer_s = [], []
    for frame in track(frames, description=recording.name, console=Console(stderr=True)):
        images = {name: recording.image(name, frame) for name in client.info.cameras}
        prediction = client.infer(recording.state[frame], images, prompt)
        end = min(frame + chunk, total)
        predicted[frame:end] = prediction.actions[: end - frame]
        hold[frame:end] = recording.state[frame]
        round_trips_s.append(prediction.round_trip_s)
        if prediction.infer_s is not None:
            infer_s.append(prediction.infer_s)
    return Replay(recording, prompt, frames, predicted, hold, tuple(round_trips_s), tuple(infer_s))


def find_records(folder: Path) -> list[Path]:
    """Return the requests that a policy server recorded, in order.

    There are none in any other folder.
    """
    from openpi.policies import recorder

    return recorder.find_records(folder) if folder.is_dir() else []


def recorded_side(records: list[Path]) -> tuple[tuple[str, ...], float]:
    """Return cameras and control rate (Hz) of the recorded robot.

    Raises:
        DatasetError: The records do not contain them.
    """
    path = records[0].with_name("metadata.json")
    try:
        fps = float(json.loads(path.read_text())["fps"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DatasetError(
            f"{path}: found no control rate 'fps' ({type(e).__name__}), expected records of 'make serve'"
        ) from e
    return tuple(_read_record(records[0])[1]), fps


def replay_records(client: PolicyClient, records: list[Path], prompt: str | None = None) -> Replay:
    """Send requests again that a server has recorded.

    Args:
        client: A connection to the server. The first `action_chunk` steps of each reply are compared.
        records: As `find_records` returns them, at least one.
        prompt: Task text. None takes that of each request.

    Returns:
        A replay with the recorded replies, one after the other, as its recorded actions.

    Raises:
        DatasetError: A record is damaged or not of this robot.
        ServerError: The server failed.
    """
    chunk = client.action_chunk
    recorded, predicted, hold, prompts, round_trips_s, infer_s = [], [], [], [], [], []
    for path in track(records, description=records[0].parent.name, console=Console(stderr=True)):
        state, images, asked, actions = _read_record(path)
        if missing := [name for name in client.info.cameras if name not in images]:
            raise DatasetError(f"{path}: no image of {', '.join(missing)}, which the server needs")
        if len(actions) < chunk:
            raise DatasetError(f"{path}: found a reply of {len(actions)} steps, expected at least {chunk}")
        prediction = client.infer(state, images, prompt or asked)
        recorded.append(actions[:chunk])
        predicted.append(prediction.actions[:chunk])
        hold.append(np.broadcast_to(state, (chunk, spec.NUM_DIMS)))
        prompts.append(prompt or asked)
        round_trips_s.append(prediction.round_trip_s)
        infer_s += [] if prediction.infer_s is None else [prediction.infer_s]
    # The replies become one recording of `chunk` frames per request.
    cameras, fps = recorded_side(records)

    def image(camera: str, t: int) -> Image:
        return _read_record(records[t // chunk])[1][camera]

    task = prompts[0] if len(set(prompts)) == 1 else None
    name = f"{records[0].parent.name}_replies"
    recording = Recording(name, fps, task, cameras, np.concatenate(hold), np.concatenate(recorded), image)
    frames = tuple(range(0, chunk * len(records), chunk))
    return Replay(
        recording, task, frames, np.concatenate(predicted), np.concatenate(hold), tuple(round_trips_s), tuple(infer_s)
    )


def _read_record(path: Path) -> tuple[JointVec, dict[str, Image], str | None, JointTraj]:
    """Return state, images, prompt and the reply's actions of one record."""
    from openpi.policies import recorder
    from openpi.shared.errors import UserError

    try:
        record = recorder.read_record(path)
    except UserError as e:
        raise DatasetError(str(e)) from e
    state, images, prompt = (record.inputs.get(key) for key in ("state", "images", "prompt"))
    actions = np.asarray(record.outputs.get("actions"))
    if (
        np.asarray(state).shape != (spec.NUM_DIMS,)
        or not isinstance(images, dict)
        or actions.shape[1:] != (spec.NUM_DIMS,)
    ):
        found = ", ".join((*record.inputs, *record.outputs))
        raise DatasetError(f"{path}: found {found}, expected a request of this robot with state, images and actions")
    # Images were sent as (h, w, 3) or (3, h, w).
    images = {name: image if image.shape[-1] == 3 else np.moveaxis(image, 0, -1) for name, image in images.items()}
    return np.asarray(state, np.float32), images, prompt, actions.astype(np.float64)


def predictor(
    client: PolicyClient, recording: Recording, prompt: str | None
) -> Callable[[int, LeftOver | None], JointTraj]:
    """Return a function that predicts the chunk at a frame.

    The chunk has shape (horizon, 14). It comes from the server. `realman.evaluation.seams` calls the function.
    """
    task = recording.task if prompt is None else prompt

    def predict(frame: int, left_over: LeftOver | None) -> JointTraj:
        images = {name: recording.image(name, frame) for name in client.info.cameras}
        return client.infer(recording.state[frame], images, task, left_over).actions

    return predict


def report(result: Replay, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return every number of a replay as plain JSON types.

    Args:
        result: The replay.
        metadata: What the server says about itself.
    """
    errors, recording = result.errors, result.recording
    chunks = []
    # Errors of each chunk on its own, so that a bad moment of the episode can be found.
    for frame, end in zip(result.frames, (*result.frames[1:], len(recording.action)), strict=True):
        part = slice(frame, end)
        chunk_errors = action_errors(
            result.predicted[part], recording.action[part].astype(np.float64), result.hold[part]
        )
        chunks.append(
            {"frame": frame, "steps": end - frame, "overall_ratio": chunk_errors.overall_ratio, **chunk_errors.groups()}
        )
    return {
        "episode": recording.name,
        "frames": len(recording.action),
        "fps": recording.fps,
        "prompt": result.prompt,
        "server": {key: metadata[key] for key in ("config", "step", "checkpoint") if key in metadata},
        "overall_ratio": errors.overall_ratio,
        **errors.groups(),
        "per_dim": errors.per_dim(),
        "round_trip_ms": percentiles_ms(list(result.round_trips_s)),
        "infer_ms": percentiles_ms(list(result.infer_s)),
        "chunks": chunks,
        "dim_names": list(spec.DIM_NAMES),
        "recorded": recording.action.astype(np.float64).round(_ROUND_DIGITS).tolist(),
        "predicted": result.predicted.round(_ROUND_DIGITS).tolist(),
    }


def find_recordings(
    data: Path, episodes: tuple[int, ...], options: raw.RawOptions
) -> list[contextlib.AbstractContextManager[Recording]]:
    """Find the chosen episodes of recordings or a LeRobot dataset.

    Args:
        data: An HDF5 file, a folder of HDF5 files, or the root folder of a LeRobot dataset.
        episodes: Which episodes of a folder or dataset, counted from 0 in natural order. Ignored for a file.
        options: How to read HDF5 files.

    Returns:
        Context managers, one per episode. Each opens its files when entered.

    Raises:
        EpisodeError: There is nothing, or not so many episodes.
    """
    if not data.exists():
        raise EpisodeError(
            f"{data}: no such file or folder, expected a recording, a folder of recordings or a LeRobot dataset. "
            "'make sample' records some"
        )
    if data.is_file():
        return [raw_recording(data, options)]
    if (data / "meta" / "info.json").is_file():
        return [dataset_recording(data, episode) for episode in episodes]
    files = raw.find_episodes(data)
    if beyond := [episode for episode in episodes if not 0 <= episode < len(files)]:
        raise EpisodeError(f"{data}: no episode {beyond[0]}, found {len(files)} counted from 0")
    return [raw_recording(files[episode], options) for episode in episodes]


@contextlib.contextmanager
def raw_recording(path: Path, options: raw.RawOptions) -> Iterator[Recording]:
    """Open one HDF5 recording after the checks that a conversion makes.

    Raises:
        EpisodeError: It is damaged or contradicts the options.
    """
    if problem := checks.check_episode(path, options, cameras=()).problem:
        raise EpisodeError(problem)
    with raw.open_episode(path, options) as episode:
        yield Recording(
            name=path.stem,
            fps=float(episode.fps),
            task=episode.task,
            cameras=tuple(episode.cameras),
            state=episode.state,
            action=episode.action,
            image=episode.image,
        )


@contextlib.contextmanager
def dataset_recording(root: Path, episode: int) -> Iterator[Recording]:
    """Open one episode of a LeRobot dataset.

    The right arm comes first, also if the names of the dataset's numbers put the left arm first.

    Raises:
        DatasetError: The dataset is damaged, or has no such episode.
    """
    from openpi.shared.errors import UserError
    from openpi.training.lerobot.dataset import LeRobotDataset

    try:
        is_left_first = existing.read(root).arm_order() == "left_right"
        dataset = LeRobotDataset(root.name, root=root, column_keys=())
        numbers = LeRobotDataset(root.name, root=root, image_keys=(), column_keys=(spec.STATE_KEY,))
    except UserError as e:
        raise DatasetError(str(e)) from e
    episodes = dataset.meta.episodes
    if not 0 <= episode < len(episodes):
        raise DatasetError(f"{root}: no episode {episode}, found {len(episodes)} counted from 0")
    # States and actions come from a second reader without images, so that no image is decoded before it is needed.
    start = episodes[episode].first_frame
    rows = [numbers[start + t] for t in range(episodes[episode].length)]

    def image(camera: str, t: int) -> Image:
        return np.moveaxis(dataset[start + t][spec.image_key(camera)], 0, -1)

    yield Recording(
        name=f"{root.name}_episode_{episode}",
        fps=float(dataset.meta.fps),
        task=rows[0]["task"],
        cameras=tuple(key.removeprefix(spec.IMAGE_KEY_PREFIX) for key in dataset.meta.camera_keys),
        state=_right_first(np.stack([row[spec.STATE_KEY] for row in rows]), is_left_first=is_left_first),
        action=_right_first(np.concatenate([row[spec.ACTION_KEY] for row in rows]), is_left_first=is_left_first),
        image=image,
    )


def _right_first(values: JointTraj, *, is_left_first: bool) -> JointTraj:
    return np.roll(values, spec.NUM_DIMS // 2, axis=1) if is_left_first else values
