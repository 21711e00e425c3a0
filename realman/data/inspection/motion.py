"""Measure ranges, speed, jerk, lag and rest of one episode's joints.

Arrays in, numbers out: no files are read.
"""

import dataclasses

import numpy as np

from realman import spec
from realman.data.raw.options import Traj

JOINTS = list(spec.JOINT_DIMS)
GRIPPERS = list(spec.GRIPPER_DIMS)
OTHER_ARM = np.r_[7:14, 0:7]
"""Indices that swap the arms."""

MAX_LAG_S = 1.0
"""Longest delay from action to state that is searched."""

REST_RAD_S = 0.01
"""An arm slower than this rests. Half a degree per second is below what teleoperation can command."""

_STEADY_S = 0.2
"""A gripper that has not moved for this long has arrived or is blocked."""

_BLOCKED = 0.1
"""Part of the stroke by which a blocked gripper misses its target. Calibration offsets are smaller."""

_PREDICTION_FRAMES = 50
"""How far ahead the differences reach that a policy learns: the action horizon of all RealMan configs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spike:
    """The worst value in an episode, relative to what is acceptable (1)."""

    ratio: float
    frame: int
    dim: int


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeMotion:
    """Measures of one episode's joints.

    Arrays have one entry per number of the 14 unless stated otherwise.
    """

    frames: np.ndarray
    """(k,) frames of the sampled rows below."""
    state: Traj
    """(k, 14) sampled states."""
    action: Traj
    """(k, 14) sampled actions."""
    ahead: Traj
    """(k, 14) what a policy learns at these frames: a later action, with joints as difference from the state."""
    state_range: np.ndarray
    """(2, 14) minimum and maximum over all frames."""
    action_range: np.ndarray
    """(2, 14) minimum and maximum over all frames."""
    num_not_finite: int
    """Numbers that are NaN or infinite. All other measures interpolate them from their neighbors."""
    state_speed: Spike
    """Speed of the state, relative to the vendor's top speed of the joint."""
    action_speed: Spike
    """Speed of the action, relative to the vendor's top speed of the joint."""
    jerk: Spike
    """Third difference of the state, relative to ten times what is usual in the episode."""
    gap: float
    """Mean distance between action and state over the joints, rad."""
    gap_swapped: float
    """The same with the action's arms swapped."""
    action_size: float
    """Mean absolute action of the joints, rad."""
    same_share: float
    """Share of frames whose action equals the state exactly."""
    lag_s: float | None
    """Delay from action to state. None if too little moves to measure it."""
    velocity_slope: float | None
    """Ratio of the recorded velocity to the rate of change of the states. None if not recorded or not proportional."""
    resting_s: tuple[float, float]
    """Length of the rest at the start and at the end."""
    blocked: np.ndarray
    """(2, 2) number of frames in which the right and left gripper is more open, and more closed, than commanded."""
    timestamp_error_s: float | None
    """Largest deviation of the time between frames from 1 / fps, beyond the rounding of float32.

    None without timestamps.
    """


def measure_motion(
    state: Traj,
    action: Traj,
    velocity: Traj | None,
    timestamp: np.ndarray | None,
    *,
    fps: float,
    max_rows: int,
) -> EpisodeMotion:
    """Measure one episode.

    Args:
        state: Measured positions, rad and gripper fraction, right arm first.
        action: Targets, in the same units and order.
        velocity: Measured velocities, rad/s.
        timestamp: Seconds of each frame.
        fps: Frames per second.
        max_rows: Number of rows to keep as a sample.
    """
    finite = np.isfinite(state) & np.isfinite(action)
    state, action = _filled(state), _filled(action)
    frames = np.unique(np.linspace(0, len(state) - 1, min(max_rows, len(state))).round().astype(int))
    # Strides that are coprime with the horizon visit every distance equally often.
    later = np.minimum(frames + np.arange(len(frames)) * 17 % _PREDICTION_FRAMES, len(state) - 1)
    ahead = action[later].copy()
    ahead[:, JOINTS] -= state[frames][:, JOINTS]
    return EpisodeMotion(
        frames=frames,
        state=state[frames],
        action=action[frames],
        ahead=ahead,
        state_range=np.stack([state.min(0), state.max(0)]),
        action_range=np.stack([action.min(0), action.max(0)]),
        num_not_finite=int((~finite).sum()),
        state_speed=_speed(state, fps),
        action_speed=_speed(action, fps),
        jerk=_jerk(state),
        gap=float(np.abs(action - state)[:, JOINTS].mean()),
        gap_swapped=float(np.abs(action[:, OTHER_ARM] - state)[:, JOINTS].mean()),
        action_size=float(np.abs(action)[:, JOINTS].mean()),
        same_share=float((action == state)[:, JOINTS].all(axis=1).mean()),
        lag_s=_lag(state, action, fps),
        velocity_slope=_velocity_slope(state, velocity, fps),
        resting_s=_rest(state, action, fps),
        blocked=_blocked(state, action, fps),
        timestamp_error_s=None if timestamp is None else _timestamp_error(timestamp, fps),
    )


def _filled(values: Traj) -> Traj:
    """Return the values with all numbers finite.

    Others are interpolated linearly between their neighbors in time, or become 0 if there are none.
    """
    filled, time = values.copy(), np.arange(len(values))
    for column in filled.T:
        good = np.isfinite(column)
        if not good.all():
            column[:] = np.interp(time, time[good], column[good]) if good.any() else 0
    return filled


def _worst(ratio: np.ndarray, dims: list[int]) -> Spike:
    """Return the largest entry of (frames, dims) and where it is."""
    if not ratio.size:
        return Spike(0.0, 0, dims[0])
    frame, column = np.unravel_index(np.argmax(ratio), ratio.shape)
    return Spike(float(ratio[frame, column]), int(frame) + 1, dims[column])


def _speed(values: Traj, fps: float) -> Spike:
    limit = np.tile(spec.ARM_SPEED_RAD_S, 2)
    return _worst(np.abs(np.diff(values[:, JOINTS], axis=0)) * fps / limit, JOINTS)


def _jerk(state: Traj) -> Spike:
    """Return the worst third difference.

    One wrong sample among smooth ones stands out most there: it appears four times, up to three times as large.
    """
    jerk = np.abs(np.diff(state[:, JOINTS], 3, axis=0))
    if not jerk.size:
        return _worst(jerk, JOINTS)
    # 0.05 rad: encoder noise and teleoperation at 50 Hz stay an order of magnitude below.
    return _worst(jerk / np.maximum(10 * np.percentile(jerk, 95, axis=0), 0.05), JOINTS)


def _lag(state: Traj, action: Traj, fps: float) -> float | None:
    """Return the shift at which action and state agree best.

    It is found by cross-correlation of their rates of change over all joints.
    """
    rate_a, rate_s = (np.diff(x[:, JOINTS].astype(np.float64), axis=0) for x in (action, state))
    most = min(round(MAX_LAG_S * fps), len(rate_s) // 3)
    if most < 1:
        return None
    scores = {lag: _correlation(*_shifted(rate_a, rate_s, lag)) for lag in range(-most, most + 1)}
    best = max(scores, key=scores.__getitem__)
    return best / fps if scores[best] > 0.5 else None


def _shifted(action: np.ndarray, state: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the action, and of the state `lag` frames later."""
    length = len(action) - abs(lag)
    return action[max(0, -lag) :][:length], state[max(0, lag) :][:length]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation without removing the mean.

    The mean rate of a motion is part of the signal.
    """
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def _velocity_slope(state: Traj, velocity: Traj | None, fps: float) -> float | None:
    if velocity is None or len(state) < 3 or not np.isfinite(velocity).all():
        return None
    rate = np.gradient(state[:, JOINTS].astype(np.float64), axis=0) * fps
    measured = velocity[:, JOINTS].astype(np.float64)
    if _correlation(rate, measured) < 0.8:
        return None
    return float((rate * measured).sum() / (rate * rate).sum())


def _rest(state: Traj, action: Traj, fps: float) -> tuple[float, float]:
    """Return the length of the rests at start and end, in s.

    Arms and grippers rest if they neither move nor are commanded to.
    """
    rates = [np.abs(np.diff(x, axis=0)).max(axis=1, initial=0.0) * fps for x in (state, action)]
    moving = np.flatnonzero(np.maximum(*rates) > REST_RAD_S)
    if not len(moving):
        return len(state) / fps, 0.0
    return float(moving[0] / fps), float((len(state) - 2 - moving[-1]) / fps)


def _blocked(state: Traj, action: Traj, fps: float) -> np.ndarray:
    """Count the frames in which a gripper stays off its target.

    An object stops a gripper from closing, and nothing stops it from opening.
    """
    counts = np.zeros((2, 2), np.int64)
    if len(state) < 2:
        return counts
    steady_frames = max(2, round(_STEADY_S * fps))
    for side, dim in enumerate(GRIPPERS):
        still = np.abs(np.diff(np.stack([state[:, dim], action[:, dim]]), axis=1)).max(axis=0, initial=0.0) < 1e-3
        # Frame t is steady when nothing moved in the frames before it.
        runs = np.convolve(still, np.ones(steady_frames), "full")[: len(still)] >= steady_frames
        gap = (state[1:, dim] - action[1:, dim])[runs]
        counts[side] = (gap > _BLOCKED).sum(), (gap < -_BLOCKED).sum()
    return counts


def _timestamp_error(timestamp: np.ndarray, fps: float) -> float:
    # The format stores float32. Its spacing is 0.12 ms from 1024 s on.
    rounding = np.spacing(np.abs(timestamp[1:]).astype(np.float32)).astype(np.float64)
    return float(np.maximum(np.abs(np.diff(timestamp) - 1 / fps) - rounding, 0.0).max(initial=0.0))
