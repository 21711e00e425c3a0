"""Measure how smoothly a policy moves in each execution mode.

Its chunks are played on a recording with a simulated delay. The players are the robot client's own. Only the clock is
simulated: a prediction takes a number of ticks. This is open loop: each chunk is predicted from the observation
recorded at that moment, so only the modes are compared, not what the arms would see.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Float
import numpy as np

from realman import spec
from realman.arrays import Image
from realman.arrays import JointTraj
from realman.arrays import JointVec
from realman.robots.robot import RobotObservation
from realman.runtime import chunks
from realman.runtime.client import LeftOver
from realman.runtime.client import Prediction

Predict = Callable[[int, LeftOver | None], JointTraj]
"""Returns the chunk (horizon, 14) that the policy predicts at a frame, continuing a left-over if there is one."""

EXECUTIONS: tuple[chunks.Execution, ...] = ("sync", "async", "blend", "rtc")

_JOINTS = list(spec.JOINT_DIMS)


@dataclasses.dataclass(frozen=True, eq=False)
class Played:
    """Targets that the arms would have been sent, tick by tick."""

    execution: chunks.Execution
    delay_steps: int
    fps: float
    targets: JointTraj
    seams: tuple[int, ...]
    """Ticks at which a new chunk began, without the first chunk."""
    is_held: np.ndarray
    """(t,) whether the arms stood still because no chunk was there."""

    def figures(self) -> dict[str, Any]:
        """Return the mode's figures as plain numbers, for the joints only."""
        joints_deg = np.rad2deg(self.targets[:, _JOINTS])
        largest_deg = np.abs(np.diff(joints_deg, axis=0)).max(axis=1)
        at_seams = largest_deg[np.array(self.seams, dtype=int) - 1]
        elsewhere = np.delete(largest_deg, np.array(self.seams, dtype=int) - 1)
        jerk = np.diff(joints_deg, n=3, axis=0) * self.fps**3
        # A stall is a run of held ticks, however long.
        num_stalls = int((np.diff(self.is_held.astype(int), prepend=0) == 1).sum())
        duration_s = len(self.targets) / self.fps
        return {
            "execution": self.execution,
            "delay_ms": self.delay_steps / self.fps * 1000,
            "duration_s": duration_s,
            "seam_jump_deg": {"p50": _percentile(at_seams, 50), "max": _percentile(at_seams, 100)},
            "other_step_deg": {"p50": _percentile(elsewhere, 50), "p95": _percentile(elsewhere, 95)},
            "jerk_rms_deg_s3": float(np.sqrt((jerk**2).mean())) if len(jerk) else 0.0,
            "stalls": num_stalls,
            "stalls_per_min": num_stalls / duration_s * 60,
            "held_s": float(self.is_held.sum() / self.fps),
        }


class SimulatedDelay:
    """An `Ask` whose predictions arrive after a fixed number of ticks."""

    def __init__(self, delay_steps: int) -> None:
        self._delay_steps = delay_steps

    def __call__(self, predict: Callable[[], Prediction]) -> chunks.ChunkRequest:
        """Start a prediction."""
        return _DelayedChunkRequest(predict(), self._delay_steps)


class _DelayedChunkRequest:
    def __init__(self, prediction: Prediction, num_polls: int) -> None:
        self._prediction = prediction
        self._left = num_polls

    def poll(self) -> Prediction | None:
        self._left -= 1
        return None if self._left >= 0 else self._prediction


class _FramePolicy:
    """An `RtcPolicy` that predicts for the current frame."""

    def __init__(self, predict: Predict, action_chunk: int, fps: float, delay_steps: int) -> None:
        self.action_chunk = action_chunk
        self.fps = fps
        self.frame = 0
        self._predict = predict
        self._round_trip_s = delay_steps / fps

    def require_rtc(self) -> None:
        """Do nothing, because `predict` supports it."""

    def infer(
        self,
        state: JointVec,
        images: Mapping[str, Image],
        prompt: str | None = None,
        left_over: LeftOver | None = None,
    ) -> Prediction:
        return Prediction(self._predict(self.frame, left_over), self._round_trip_s, None)


def play(
    predict: Predict,
    num_frames: int,
    *,
    fps: float,
    execution: chunks.Execution,
    delay_steps: int,
    action_chunk: int = spec.ACTION_CHUNK,
    blend_steps: int = chunks.BLEND_STEPS,
) -> Played:
    """Play a policy's chunks over a recording.

    Args:
        predict: The policy. It is asked at some frames in 0..num_frames - 1.
        num_frames: Length of the recording.
        fps: Rate of the recording, Hz.
        execution: How chunks are played.
        delay_steps: Ticks that pass during a prediction. In `sync` mode the arms hold their last target and the
            recording waits. In the other modes both continue.
        action_chunk: Steps after which the next chunk is asked for.
        blend_steps: Steps of a cross-fade.
    """
    policy = _FramePolicy(predict, action_chunk, fps, delay_steps)
    player = chunks.make_player(execution, policy, None, blend_steps=blend_steps, ask=SimulatedDelay(delay_steps))
    nothing = RobotObservation(np.zeros(spec.NUM_DIMS), {}, 0.0)
    targets: list[np.ndarray] = []
    held: list[bool] = []
    seams: list[int] = []
    for policy.frame in range(num_frames):
        tick = player.next_tick(lambda: nothing)
        # A mode that blocks holds the last target until its chunk is there.
        if tick.is_seam and targets:
            num_held = delay_steps if tick.has_blocked else 0
            targets += [targets[-1]] * num_held
            held += [True] * num_held
            seams.append(len(targets))
        targets.append(tick.target)
        held.append(tick.is_stall)
    return Played(execution, delay_steps, fps, np.stack(targets), tuple(seams), np.array(held))


def compare(
    predict: Predict,
    num_frames: int,
    *,
    fps: float,
    delays_ms: tuple[float, ...],
    action_chunk: int = spec.ACTION_CHUNK,
    executions: Sequence[chunks.Execution] = EXECUTIONS,
) -> Iterator[Played]:
    """Play every mode with every delay.

    Chunks that continue no left-over are predicted only once per frame and reused.
    """
    known: dict[int, JointTraj] = {}

    def remember(frame: int, left_over: LeftOver | None) -> JointTraj:
        if left_over is not None:
            return predict(frame, left_over)
        if frame not in known:
            known[frame] = predict(frame, None)
        return known[frame]

    for delay_ms in delays_ms:
        for execution in executions:
            yield play(
                remember,
                num_frames,
                fps=fps,
                execution=execution,
                delay_steps=int(np.ceil(delay_ms * fps / 1000)),
                action_chunk=action_chunk,
            )


def wandering_copy(recorded: JointTraj, horizon: int, *, error_rad: float = 0.01, seed: int = 0) -> Predict:
    """Make a stand-in policy from the recorded actions.

    Each chunk has a random error that grows along it, like that of real policies. With a left-over it answers like a
    guided flow model: each step mixes the left-over's and its own by the weights of `left_over_weights`.
    """

    def predict(frame: int, left_over: LeftOver | None = None) -> JointTraj:
        rng = np.random.default_rng((seed, frame))
        rows = np.minimum(frame + np.arange(horizon), len(recorded) - 1)
        error = rng.normal(0.0, error_rad, spec.NUM_DIMS) + np.linspace(0, 1, horizon)[:, None] * rng.normal(
            0.0, error_rad, spec.NUM_DIMS
        )
        own = recorded[rows].astype(np.float64) + error * np.isin(np.arange(spec.NUM_DIMS), _JOINTS)
        if left_over is None:
            return own
        num_left = len(left_over.actions)
        weights = left_over_weights(left_over.delay, num_left)[:, None]
        return np.concatenate([weights * left_over.actions + (1 - weights) * own[:num_left], own[num_left:]])

    return predict


def left_over_weights(delay: int, num_left: int) -> Float[np.ndarray, " k"]:
    """Return how strongly a chunk is tied to each left-over step.

    The weight is 1 before `delay`, then falls exponentially.

    Formula (arXiv 2506.07339): c (e^c - 1) / (e - 1) with c_i = (k - i) / (k - delay + 1).
    """
    falling = (num_left - np.arange(num_left)) / (num_left - delay + 1)
    return np.where(np.arange(num_left) < delay, 1.0, falling * np.expm1(falling) / np.expm1(1.0))


def _percentile(values: np.ndarray, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None
