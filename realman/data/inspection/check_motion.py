"""Check that actions, states and clock agree, and the motion is possible."""

from collections.abc import Callable, Iterator

import numpy as np

from realman import spec
from realman.data.inspection.motion import EpisodeMotion
from realman.data.inspection.motion import Spike
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey
from realman.data.inspection.survey import counted
from realman.data.inspection.survey import some
from realman.data.raw import plausible

_MIN_GAP_RAD = 0.1
"""Mean distance between action and state that is too large for a following error."""

_CLEARLY_BETTER = 0.5
"""Another interpretation of the actions counts only if it at least halves the distance."""

_LONG_LAG_S = 0.3
"""Teleoperated arms follow within 0.05 to 0.2 s, so more than this is suspicious."""

_SPEED_MARGIN = 1.2
"""Multiple of the vendor's top speed above which a step is a sensor fault and not motion."""

_LONG_REST_S = 2.0
_TIMESTAMP_TOLERANCE_S = 1e-4
"""Same as LeRobot's own tolerance."""


def check_action_meaning(survey: Survey) -> Iterator[Finding]:
    """Check that actions are absolute targets, not differences or copies."""
    moves = np.ptp(survey.state_range, axis=0).max() > _MIN_GAP_RAD
    if not survey.has_plausible_angles or not moves:
        return
    # At most one explanation is reported: swapped arms, differences, a copy, then an unexplained distance.
    motions = survey.motions.values()
    gap, swapped, size, same = (
        float(np.mean([getattr(m, name) for m in motions]))
        for name in ("gap", "gap_swapped", "action_size", "same_share")
    )
    if gap > _MIN_GAP_RAD and swapped < _CLEARLY_BETTER * gap:
        yield Finding(
            "error",
            "action-arm-order",
            f"actions are {gap:.2f} rad away from the states, but {swapped:.2f} rad with the action's arms swapped",
            "swap the two halves of /action in the recordings (--raw-arm-order applies to both state and action)",
        )
    elif gap > _MIN_GAP_RAD and size < _CLEARLY_BETTER * gap:
        yield Finding(
            "error",
            "delta-action",
            f"actions are small (mean {size:.3f} rad) and {gap:.2f} rad away from the states: these are differences",
            "write absolute joint targets (state plus difference) to /action. Training computes the differences itself "
            "(--data.use-delta-joint-actions, on by default)",
        )
    elif same > 0.9:
        text = f"in {same:.0%} of the frames the action equals the state: this teaches a policy to stand still"
        yield Finding(
            "warning", "action-is-state", text, "record the command (of the leader arm) or the next state as the action"
        )
    elif gap > 3 * _MIN_GAP_RAD:
        text = f"actions are {gap:.2f} rad away from the states on average, far more than an arm lags behind"
        remedy = "check that /action holds joint targets with the arms, unit and zero of observations/qpos"
        yield Finding("warning", "action-offset", text, remedy)


def check_lag(survey: Survey) -> Iterator[Finding]:
    """Check that the state follows the action, and soon."""
    lag = survey.lag_s
    if lag is None:
        return
    if lag < 0:
        text = f"actions come {-lag * 1000:.0f} ms after the motion that they should cause"
        yield Finding("warning", "lag", text, "in the recorder, pair each state with the command sent right after it")
    elif lag > _LONG_LAG_S:
        text = f"the arms follow their actions only after {lag * 1000:.0f} ms"
        remedy = "check the recorder's queues and clocks, because a policy would learn to command that far ahead"
        yield Finding("warning", "lag", text, remedy)


def check_rate(survey: Survey) -> Iterator[Finding]:
    """Check that the frame rate is stated, uniform and true.

    It must agree with velocities and timestamps.
    """
    rates = sorted({e.fps for e in survey.readable})
    if len(rates) > 1:
        text = f"episodes have different frame rates: {', '.join(f'{r:g}' for r in rates)} fps"
        remedy = "convert each rate to a dataset of its own (--episodes)"
        yield Finding("error", "fps", text, remedy)
    assumed = [e.name for e in survey.readable if not e.has_fps]
    if assumed:
        text = f"{counted(len(assumed), 'recording')} without a frame rate, so {rates[0]:g} fps is assumed"
        yield Finding("warning", "fps", text, survey.convert_with("--fps and the true rate"), tuple(assumed))
    contradicted = [e for e in survey.readable if plausible.contradicts(e.clock_fps, e.fps)]
    if contradicted:
        first = contradicted[0]
        stated = "stated" if first.has_fps else "assumed"
        text = f"timestamps are {first.clock_fps:.1f} frames per second apart in {first.name}, but {first.fps:g} are {stated}"
        remedy = survey.convert_with(f"--fps {max(1, round(first.clock_fps or 1))}")
        yield Finding("error", "fps", text, remedy, tuple(e.name for e in contradicted))
    # The times of a dataset must be exact.
    late = {n: m.timestamp_error_s for n, m in survey.motions.items() if m.timestamp_error_s is not None}
    bad = [name for name, error in late.items() if error > _TIMESTAMP_TOLERANCE_S]
    if bad:
        worst_ms = max(late[n] for n in bad) * 1000
        text = f"steps between timestamps differ from 1 / fps by up to {worst_ms:.1f} ms in {some(bad)}"
        remedy = "convert the recordings again, because LeRobot refuses to load such a dataset"
        yield Finding("error", "timestamps", text, remedy, tuple(bad))
    yield from _check_velocity(survey)


def _check_velocity(survey: Survey) -> Iterator[Finding]:
    slopes = [m.velocity_slope for m in survey.motions.values() if m.velocity_slope is not None]
    if not slopes or not survey.has_plausible_angles:
        return
    slope, fps = float(np.median(slopes)), survey.readable[0].fps
    if 0.8 < slope < 1.25:
        return
    if 0.15 < slope < 6:
        yield Finding(
            "warning",
            "velocity",
            f"recorded velocities are {slope:.2f} times as large as the positions suggest at {fps:g} fps",
            f"the true rate may be {fps * slope:.0f} fps: " + survey.convert_with("--fps and the true rate"),
        )
    else:
        text = (
            f"recorded velocities are {slope:.3g} times as large as the positions suggest: another unit than the angles"
        )
        yield Finding(
            "note", "velocity", text, "our configs do not train on observation.velocity. Fix the recorder if yours does"
        )


def check_spikes(survey: Survey) -> Iterator[Finding]:
    """Find steps and jerks that an arm cannot make."""
    if not survey.has_plausible_angles:
        return
    kinds: tuple[tuple[str, Callable[[EpisodeMotion], Spike], str], ...] = (
        ("state-jump", lambda m: m.state_speed, "the state of {dim} moves at {ratio:.1f} times the joint's top speed"),
        (
            "action-jump",
            lambda m: m.action_speed,
            "the action of {dim} moves at {ratio:.1f} times the joint's top speed",
        ),
        ("jerk", lambda m: m.jerk, "the state of {dim} jerks {ratio:.1f} times harder than acceptable"),
    )
    jumped: set[str] = set()
    for check, spike_of, text in kinds:
        spikes = {n: spike_of(m) for n, m in survey.motions.items()}
        limit = 1.5 if check == "jerk" else _SPEED_MARGIN
        # A jump is also a jerk, so report it only once.
        bad = {n: s for n, s in spikes.items() if s.ratio > limit and not (check == "jerk" and n in jumped)}
        jumped |= set(bad) if check == "state-jump" else set()
        if bad:
            worst = max(bad, key=lambda n: bad[n].ratio)
            spike = bad[worst]
            found = text.format(dim=spec.DIM_NAMES[spike.dim], ratio=spike.ratio)
            yield Finding(
                "warning",
                check,
                f"{found} at frame {spike.frame} of {worst} ({counted(len(bad), 'episode')} affected)",
                "check these frames for lost packets, missing frames or a wrapped encoder. "
                "Leave out the episodes with --episodes",
                tuple(bad),
            )


def check_rest(survey: Survey) -> Iterator[Finding]:
    """Find long rests, which teach a policy to wait."""
    waits = {n: sum(m.resting_s) for n, m in survey.motions.items()}
    long = [n for n, seconds in waits.items() if seconds > _LONG_REST_S]
    if long:
        worst = max(long, key=waits.__getitem__)
        text = (
            f"nothing moves for up to {waits[worst]:.1f} s at the start and end of {worst} "
            f"({counted(len(long), 'episode')} over {_LONG_REST_S:g} s)"
        )
        yield Finding(
            "note",
            "rest",
            text,
            "start and stop recording closer to the motion, because a policy learns to wait",
            tuple(long),
        )
