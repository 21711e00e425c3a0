"""Do action, state, velocity and clock belong together, and is the motion one that arms can make?"""

from collections.abc import Callable, Iterator

import numpy as np

from realman import spec
from realman.data.inspection.motion import EpisodeMotion
from realman.data.inspection.motion import Spike
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey
from realman.data.inspection.survey import counted
from realman.data.inspection.survey import some

_MIN_GAP_RAD = 0.1
"""Mean distance of action and state that no following error explains."""

_CLEARLY_BETTER = 0.5
"""Another reading of the actions must halve the distance to count."""

_LONG_LAG_S = 0.3
"""Teleoperated arms follow within 0.05 to 0.2 s."""

_SPEED_MARGIN = 1.2
"""Part of the vendor's top speed at which a measured step is a fault of the sensor, not a motion."""

_LONG_REST_S = 2.0
_TIMESTAMP_TOLERANCE_S = 1e-4
"""LeRobot's own tolerance."""


def check_action_meaning(survey: Survey) -> Iterator[Finding]:
    """Actions must be absolute targets of the same arms, and not a copy of the state."""
    moves = np.ptp(survey.state_range, axis=0).max() > _MIN_GAP_RAD
    if not survey.has_plausible_angles or not moves:
        return
    motions = survey.motions.values()
    gap, swapped, size, same = (
        float(np.mean([getattr(m, name) for m in motions]))
        for name in ("gap", "gap_swapped", "action_size", "same_share")
    )
    if gap > _MIN_GAP_RAD and swapped < _CLEARLY_BETTER * gap:
        yield Finding(
            "error",
            "action-arm-order",
            f"actions lie {gap:.2f} rad from the states, but {swapped:.2f} rad with the arms of the action exchanged",
            "exchange the two halves of /action in the recordings: --raw-arm-order holds for state and action alike",
        )
    elif gap > _MIN_GAP_RAD and size < _CLEARLY_BETTER * gap:
        yield Finding(
            "error",
            "delta-action",
            f"actions are small (mean {size:.3f} rad) and {gap:.2f} rad from the states: these are differences already",
            "write absolute joint targets (state plus difference) to /action; training makes the differences itself "
            "(--data.use-delta-joint-actions, on by default)",
        )
    elif same > 0.9:
        text = f"in {same:.0%} of the frames the action equals the state: a policy learns from it to stand still"
        yield Finding("warning", "action-is-state", text, "record the command (leader), or the next state, as action")
    elif gap > 3 * _MIN_GAP_RAD:
        text = f"actions lie {gap:.2f} rad from the states on average, far more than an arm lags behind"
        remedy = (
            "check that /action holds joint targets of the same arms, in the same unit and zero as observations/qpos"
        )
        yield Finding("warning", "action-offset", text, remedy)


def check_lag(survey: Survey) -> Iterator[Finding]:
    """The state should follow the action, soon."""
    lag = survey.lag_s
    if lag is None:
        return
    if lag < 0:
        text = f"actions come {-lag * 1000:.0f} ms after the motion they should cause"
        yield Finding("warning", "lag", text, "pair each state with the command sent right after it in the recorder")
    elif lag > _LONG_LAG_S:
        text = f"arms follow their actions only after {lag * 1000:.0f} ms"
        remedy = "check the recorder's queues and clocks; a policy learns to command that far ahead"
        yield Finding("warning", "lag", text, remedy)


def check_rate(survey: Survey) -> Iterator[Finding]:
    """Frames per second: stated, the same everywhere, in agreement with velocities and timestamps."""
    rates = sorted({e.fps for e in survey.readable})
    if len(rates) > 1:
        text = f"episodes differ in their rate: {', '.join(f'{r:g}' for r in rates)} fps"
        remedy = "convert each rate to a dataset of its own (--episodes)"
        yield Finding("error", "fps", text, remedy)
    assumed = [e.name for e in survey.readable if not e.has_fps]
    if assumed:
        text = f"{counted(len(assumed), 'recording')} states no rate; {rates[0]:g} fps is assumed"
        yield Finding("warning", "fps", text, survey.convert_with("--fps and the true rate"), tuple(assumed))
    late = {n: m.timestamp_error_s for n, m in survey.motions.items() if m.timestamp_error_s is not None}
    bad = [name for name, error in late.items() if error > _TIMESTAMP_TOLERANCE_S]
    if bad:
        text = (
            f"steps between timestamps are up to {max(late[n] for n in bad) * 1000:.1f} ms off 1 / fps, in {some(bad)}"
        )
        remedy = "convert the recordings again; LeRobot refuses to load such a dataset"
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
            f"recorded velocities are {slope:.2f} times what the positions say at {fps:g} fps",
            f"the true rate may be {fps * slope:.0f} fps: " + survey.convert_with("--fps and the true rate"),
        )
    else:
        text = f"recorded velocities are {slope:.3g} times what the positions say: another unit than the angles"
        yield Finding("note", "velocity", text, "no config trains on observation.velocity; mend the recorder if you do")


def check_spikes(survey: Survey) -> Iterator[Finding]:
    """Steps and jerks that no arm makes."""
    if not survey.has_plausible_angles:
        return
    kinds: tuple[tuple[str, Callable[[EpisodeMotion], Spike], str], ...] = (
        ("state-jump", lambda m: m.state_speed, "the state of {dim} moves at {ratio:.1f} times the joint's top speed"),
        (
            "action-jump",
            lambda m: m.action_speed,
            "the action of {dim} moves at {ratio:.1f} times the joint's top speed",
        ),
        ("jerk", lambda m: m.jerk, "the state of {dim} jerks {ratio:.1f} times harder than is usual"),
    )
    jumped: set[str] = set()
    for check, spike_of, text in kinds:
        spikes = {n: spike_of(m) for n, m in survey.motions.items()}
        limit = 1.5 if check == "jerk" else _SPEED_MARGIN
        # A jump is a jerk as well: name it once.
        bad = {n: s for n, s in spikes.items() if s.ratio > limit and not (check == "jerk" and n in jumped)}
        jumped |= set(bad) if check == "state-jump" else set()
        if bad:
            worst = max(bad, key=lambda n: bad[n].ratio)
            spike = bad[worst]
            found = text.format(dim=spec.DIM_NAMES[spike.dim], ratio=spike.ratio)
            yield Finding(
                "warning",
                check,
                f"{found} at frame {spike.frame} of {worst} ({counted(len(bad), 'episode')} in all)",
                "look at these frames: lost packets, missing frames or a wrapped encoder; leave the episodes out with --episodes",
                tuple(bad),
            )


def check_rest(survey: Survey) -> Iterator[Finding]:
    """Long rests teach a policy to wait."""
    waits = {n: sum(m.resting_s) for n, m in survey.motions.items()}
    long = [n for n, seconds in waits.items() if seconds > _LONG_REST_S]
    if long:
        worst = max(long, key=waits.__getitem__)
        text = f"nothing moves for up to {waits[worst]:.1f} s at the start and end ({worst}; {counted(len(long), 'episode')} over {_LONG_REST_S:g} s)"
        yield Finding(
            "note", "rest", text, "start and stop recordings closer to the motion: a policy learns to wait", tuple(long)
        )
