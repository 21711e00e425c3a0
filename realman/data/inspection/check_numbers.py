"""Check the 14 numbers of each frame.

They must be finite, in rad, within the limits, with grippers 0..1 and 1 = open. All should move, and vary enough.
"""

from collections.abc import Iterator
import math

import numpy as np

from realman import spec
from realman.data import units
from realman.data.inspection.motion import GRIPPERS
from realman.data.inspection.motion import JOINTS
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey
from realman.data.inspection.survey import counted
from realman.data.inspection.survey import some

_STILL = np.where(np.isin(np.arange(spec.NUM_DIMS), JOINTS), math.radians(0.1), 0.01)
"""A number with a smaller range than this does not move. Encoder noise of a resting arm is below 0.1 deg."""

_TINY_SPAN = np.where(np.isin(np.arange(spec.NUM_DIMS), JOINTS), math.radians(1.0), 0.02)
"""If q01..q99 spans less than this, half a degree (or a hundredth of the stroke) fills the normalized range -1..1."""

_FAR_OUT = 10.0
"""A normalized value beyond this means that q01..q99 is far smaller than the whole range."""

_MANY_CLIPPED = 0.10
"""The data's own quantiles leave 2 % of a number outside. Five times that is a mismatch."""

_SMALL_STROKE = 0.2
"""A gripper that moves but never beyond this is probably recorded in meters."""


def check_finite(survey: Survey) -> Iterator[Finding]:
    """Find NaN and infinite numbers."""
    bad = {name: m.num_not_finite for name, m in survey.motions.items() if m.num_not_finite}
    if bad:
        yield Finding(
            "error",
            "not-finite",
            f"{sum(bad.values())} numbers are NaN or infinite, in {some(bad)}",
            "leave these episodes out with --skip-bad, or record them again",
            tuple(bad),
        )


def check_angles(survey: Survey) -> Iterator[Finding]:
    """Check the unit of the joint angles, then the joint limits."""
    flags = units.better_angle_flags(survey.positions, survey.data.options)
    largest = max(float(np.abs(r[:, JOINTS]).max()) for r in (survey.state_range, survey.action_range))
    if not survey.has_plausible_angles:
        text = f"joint angles reach {largest:.1f} rad, but no joint can turn beyond {units.FULL_TURN_RAD:.2f} rad"
        if flags is None:
            yield Finding(
                "error", "angle-unit", text, "check the recorder's unit, because this is impossible even in degrees"
            )
        else:
            yield Finding("error", "angle-unit", f"{text}: the angles are in degrees", survey.convert_with(flags))
    elif flags is not None:
        text = f"no joint goes beyond {math.degrees(largest):.2f} deg: the angles are in radians"
        remedy = survey.convert_with(flags) if flags else "leave out --angle-unit deg"
        yield Finding("error", "angle-unit", text, remedy)
    else:
        yield from _check_limits(survey)


def _check_limits(survey: Survey) -> Iterator[Finding]:
    beyond = {}
    # For each episode, keep the number that is farthest beyond its limit.
    for name, motion in survey.motions.items():
        excess = {
            f"{what} of {spec.DIM_NAMES[dim]}": max(high[dim] - spec.UPPER[dim], spec.LOWER[dim] - low[dim])
            for what, (low, high) in (("state", motion.state_range), ("action", motion.action_range))
            for dim in JOINTS
        }
        worst = max(excess, key=excess.__getitem__)
        if excess[worst] > units.LIMIT_TOLERANCE_RAD:
            beyond[name] = (excess[worst], worst)
    if beyond:
        name = max(beyond, key=lambda n: beyond[n][0])
        excess_rad, dim_text = beyond[name]
        yield Finding(
            "error",
            "joint-limit",
            f"the {dim_text} is {math.degrees(excess_rad):.1f} deg beyond the RM65's limit in {name} "
            f"({counted(len(beyond), 'episode')} affected)",
            "check the joint's zero and sign in the recorder. --skip-bad leaves these episodes out",
            tuple(beyond),
        )


def check_grippers(survey: Survey) -> Iterator[Finding]:
    """Check range and direction of the grippers."""
    low, high = survey.data.options.gripper_range
    fractions = np.stack([survey.state_range, survey.action_range])[:, :, GRIPPERS]
    options = survey.data.options
    recorded = np.stack(
        [
            units.recorded_grippers(survey.state_range, options),
            units.recorded_grippers(survey.action_range, options.for_actions()),
        ]
    )
    seen = f"grippers go from {recorded.min():g} to {recorded.max():g}"
    # A wrong scale comes first, because directions on it mean nothing.
    tolerance = units.GRIPPER_TOLERANCE
    if fractions.min() < -tolerance or fractions.max() > 1 + tolerance:
        flags = units.better_gripper_flags(survey.positions, options) or "--gripper-range CLOSED:OPEN"
        remedy = survey.convert_with(f"{flags} (closed:open, exchange both ends if larger is more closed)")
        yield Finding("error", "gripper-range", f"{seen}, outside {low:g}:{high:g}", remedy)
    elif np.ptp(fractions) > 1e-3 and fractions.max() <= _SMALL_STROKE:
        flag = f"--gripper-range 0:{recorded.max():.3g}" if high > low else f"--gripper-range 0:{high:g}"
        yield Finding(
            "warning",
            "gripper-range",
            f"{seen}, only {fractions.max():.0%} of {low:g}:{high:g}: they may be in meters or on another scale",
            survey.convert_with(f"{flag}, using the gripper's real values when closed and when open"),
        )
    else:
        yield from _check_gripper_direction(survey)


def _check_gripper_direction(survey: Survey) -> Iterator[Finding]:
    """Find grippers with 0 and 1 swapped.

    An object stops a gripper from closing, never from opening. So a blocked gripper is more open than commanded.
    """
    low, high = survey.data.options.gripper_range
    blocked = np.sum([m.blocked for m in survey.motions.values()], axis=0)
    seconds = blocked / survey.readable[0].fps
    for side, name in enumerate(spec.SIDES):
        open_s, closed_s = seconds[side]
        measured = np.ptp(survey.state_range[:, GRIPPERS[side]]) > _STILL[GRIPPERS[side]]
        if measured and closed_s > 0.5 and closed_s > 4 * open_s:
            yield Finding(
                "warning",
                "gripper-direction",
                f"the {name} gripper is more closed than commanded for {closed_s:.1f} s, more open for {open_s:.1f} s. "
                "An object can only hold it open, so 0 and 1 are probably swapped (1 must be open)",
                survey.convert_with(f"--gripper-range {high:g}:{low:g}") + ", or calibrate the gripper",
            )


def check_constant(survey: Survey) -> Iterator[Finding]:
    """Find numbers that never change."""
    # Within episodes, because an arm that is not used may rest at another pose in each.
    state = np.max([np.ptp(m.state_range, axis=0) for m in survey.motions.values()], axis=0) < _STILL
    action = np.max([np.ptp(m.action_range, axis=0) for m in survey.motions.values()], axis=0) < _STILL
    if not survey.has_plausible_angles:
        return
    if state[JOINTS].all():
        text = "no joint of either arm ever moves"
        yield Finding(
            "error", "constant", text, "check that the recorder writes measured positions to observations/qpos"
        )
        return
    for side, arm in spec.ARM_SLICES.items():
        names = np.array(spec.DIM_NAMES[arm])
        if state[arm].all() and action[arm].all():
            text = f"the {side} arm never moves"
            yield Finding("note", "constant", text, "fine for a task of one arm. Keep it at the same pose on the robot")
            continue
        lost = names[state[arm] & ~action[arm]]
        if len(lost):
            text = f"commanded to move, but the state never changes: {some(lost, 6)}"
            yield Finding(
                "warning",
                "constant",
                text,
                "check that the recorder reads these sensors, because the policy cannot see them move",
            )
        idle = [
            f"{spec.DIM_NAMES[d]} ({_with_unit(float(survey.state_range[0, d]), d)})"
            for d in range(spec.NUM_DIMS)[arm]
            if state[d] and action[d]
        ]
        if idle:
            text = f"constant while the {side} arm moves: {some(idle, 6)}"
            remedy = "check the recorder. If this is intended, the policy learns to keep these values"
            yield Finding("warning", "constant", text, remedy)


def quantiles(rows: np.ndarray) -> np.ndarray:
    """Return the 1 % and 99 % quantiles (2, 14).

    pi0.5 and pi0-FAST normalize the range between them to -1..1.
    """
    return np.quantile(rows, [0.01, 0.99], axis=0)


def clipped_shares(survey: Survey) -> np.ndarray:
    """Return the share of states outside the normalized range (14,).

    pi0.5 clips these states to its first and last token.
    """
    low, high = quantiles(survey.state_rows)
    if survey.norm_stats is not None:
        low, high = survey.norm_stats.q01, survey.norm_stats.q99
    # With the small constant that training adds too, so that rounding does not make a constant number look clipped.
    scaled = 2 * (survey.state_rows - low) / (high - low + 1e-6) - 1
    return (np.abs(scaled) > 1 + 1e-3).mean(axis=0)


def check_spread(survey: Survey) -> Iterator[Finding]:
    """Find spans so small that quantile normalization blows up small deviations."""
    if not survey.has_plausible_angles:
        return
    for what, rows in (("state", survey.state_rows), ("action", survey.ahead_rows)):
        low, high = quantiles(rows)
        span = high - low
        moving = np.ptp(survey.state_range if what == "state" else survey.action_range, axis=0) >= _STILL
        tiny = moving & (span < _TINY_SPAN)
        reach = np.abs(2 * (rows - low) / (span + 1e-6) - 1).max(axis=0)
        if tiny.any():
            # It only hurts if some frame is far outside the tiny span.
            names = [f"{spec.DIM_NAMES[d]} ({_with_unit(float(span[d]), d)})" for d in np.flatnonzero(tiny).tolist()]
            far = float(reach[tiny].max())
            yield Finding(
                "warning" if far > _FAR_OUT else "note",
                "tiny-span",
                f"98 % of the {what}s of {some(names, 4)} are very close together: normalized values reach {far:.0f}",
                "record more varied motion, or train a pi0 config, which normalizes by the standard deviation",
            )


def check_clipped(survey: Survey) -> Iterator[Finding]:
    """Find states that pi0.5 clips with the statistics of a training run."""
    shares = clipped_shares(survey)
    many = np.flatnonzero(shares > _MANY_CLIPPED)
    if survey.norm_stats is not None and len(many):
        worst = [f"{spec.DIM_NAMES[d]} {shares[d]:.0%}" for d in many[np.argsort(-shares[many])]]
        yield Finding(
            "warning",
            "clipped-state",
            f"states are outside the range of {survey.norm_stats.path}: {some(worst, 4)}",
            "run 'make norm-stats' on this data, or check that units and arm order match the data used for training",
        )


def _with_unit(value: float, dim: int) -> str:
    return f"{math.degrees(value):.2f} deg" if dim in JOINTS else f"{value:.3f}"
