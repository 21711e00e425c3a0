"""Check the units of measured and commanded numbers.

Measurements and commands may have units of their own. The remedy names the flags for both, so that following it once
is enough.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math

from jaxtyping import Float64
import numpy as np

from realman import spec
from realman.data.raw.episode import ACTION
from realman.data.raw.episode import QPOS
from realman.data.raw.options import AngleUnit
from realman.data.raw.options import RawOptions
from realman.data.raw.options import Traj

LIMIT_TOLERANCE_RAD = math.radians(2.0)
"""How far a measured angle may be beyond the vendor's limit. Encoders and leader arms overshoot a little."""

GRIPPER_TOLERANCE = 0.05
"""How far a gripper may be beyond 0..1 before clipping. RealMan's EG2 reads down to -3 of 1000 when closed."""

FULL_TURN_RAD = 2 * math.pi
"""No joint of the arm turns further than this, so larger numbers are not radians."""

MIN_MOTION_DEG = 5.0
"""If all joints of both arms stay this close to zero, the numbers are radians that were taken for degrees."""

GRIPPER_FULL_SCALES = (1, 100, 255, 1000)
"""Common full scales of grippers: fraction, percent, Modbus byte, per mille."""

_FULL_SCALE = 100
"""A gripper range of at least this size is a scale and not a fraction."""

_LARGEST_FRACTION = 1.5
"""Grippers that stay below this on such a scale are fractions."""

_JOINTS = list(spec.JOINT_DIMS)
_GRIPPERS = list(spec.GRIPPER_DIMS)

GripperRange = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class _Finding:
    """What speaks against the unit of one dataset."""

    text: str
    better: AngleUnit | GripperRange | None = None
    """The unit that would explain it."""


def unit_problems(positions: Mapping[str, Traj], options: RawOptions) -> Iterator[str]:
    """Describe angles and grippers that do not fit their units.

    Args:
        positions: Finite positions by dataset, as read with the options and not clipped.
        options: How they were read.
    """
    angle_flags, gripper_flags = better_angle_flags(positions, options), better_gripper_flags(positions, options)
    for name, values in positions.items():
        if (finding := _angle_finding(name, values, _options_of(name, options))) is not None:
            remedy = f"give {angle_flags}" if angle_flags else "leave --angle-unit deg out"
            yield f"{finding.text}{remedy if finding.better else ''}"
        if (finding := _gripper_finding(name, values, _options_of(name, options))) is not None:
            ends = ", as CLOSED:OPEN. Exchange both ends if larger is more closed"
            yield f"{finding.text}{f'Give {gripper_flags}{ends}' if gripper_flags else 'Leave --gripper-range out'}"


def _suggested_gripper_range(lowest: float, highest: float) -> GripperRange:
    """Return the scale on which a gripper probably reads."""
    largest = max(abs(lowest), abs(highest))
    full = next((s for s in GRIPPER_FULL_SCALES if largest <= s * (1 + GRIPPER_TOLERANCE)), largest)
    # A scale around zero, such as -1..1, has no usual closed value. A closed EG2 reads only a little below 0.
    return (float(f"{lowest:.3g}") if lowest < -0.1 * largest else 0.0), float(f"{full:.6g}")


def _angle_flags(state: AngleUnit, action: AngleUnit, options: RawOptions) -> str:
    """Return the flags for these units, or nothing if none is needed."""
    flags = ["--angle-unit deg"] if state == "deg" else []
    if action != state or options.action_angle_unit is not None:
        flags.append(f"--action-angle-unit {action}")
    return " ".join(flags)


def _gripper_flags(state: GripperRange, action: GripperRange, options: RawOptions) -> str:
    """Return the flags for these ranges, or nothing if none is needed."""
    flags = [f"--gripper-range {state[0]:g}:{state[1]:g}"] if state != (0.0, 1.0) else []
    if action != state or options.action_gripper_range is not None:
        flags.append(f"--action-gripper-range {action[0]:g}:{action[1]:g}")
    return " ".join(flags)


def _angle_finding(name: str, values: Traj, options: RawOptions) -> _Finding | None:
    # Report the strongest excess, because one line can show only one.
    excess = np.maximum(values - spec.UPPER, spec.LOWER - values)[:, _JOINTS]
    frame, column = np.unravel_index(np.argmax(excess), excess.shape)
    largest_rad = float(np.abs(values[:, _JOINTS]).max())
    if excess[frame, column] > LIMIT_TOLERANCE_RAD:
        dim = _JOINTS[column]
        limit = spec.UPPER[dim] if values[frame, dim] > 0 else spec.LOWER[dim]
        text = f"'{name}' {spec.DIM_NAMES[dim]} is {values[frame, dim]:.3f} rad at frame {frame}, limit {limit:.3f} rad"
        if options.angle_unit == "rad" and largest_rad > FULL_TURN_RAD + LIMIT_TOLERANCE_RAD:
            return _Finding(f"{text}. These look like degrees: ", "deg")
        return _Finding(text)
    if options.angle_unit == "deg" and 0 < largest_rad < math.radians(MIN_MOTION_DEG):
        return _Finding(f"'{name}' stays within {math.degrees(largest_rad):.2f} deg. These look like radians: ", "rad")
    return None


def better_angle_flags(positions: Mapping[str, Traj], options: RawOptions) -> str | None:
    """Return the flags for the units that the angles seem to have.

    Args:
        positions: Finite positions by dataset, as read with the options and not clipped.
        options: How they were read.

    Returns:
        Empty if no flags are needed. None if nothing speaks against the options.
    """
    of = {name: _options_of(name, options) for name in positions}
    findings = {name: _angle_finding(name, values, of[name]) for name, values in positions.items()}
    better = {name: found.better for name, found in findings.items() if found is not None and found.better}
    if not better:
        return None
    units: dict[str, AngleUnit] = {name: of[name].angle_unit for name in positions}
    units.update({name: "deg" if unit == "deg" else "rad" for name, unit in better.items()})
    # The other dataset has the unit in which it is closest to this one.
    for name, other in ((QPOS, ACTION), (ACTION, QPOS)):
        if name in better and other in positions and other not in better:
            known = _in_unit(positions[name], of[name].angle_unit, units[name])
            distance = {
                unit: float(np.abs(_in_unit(positions[other], of[other].angle_unit, unit) - known).mean())
                for unit in (of[other].angle_unit, units[name])
            }
            units[other] = min(distance, key=distance.__getitem__)
    state = units.get(QPOS, units.get(ACTION, "rad"))
    return _angle_flags(state, units.get(ACTION, state), options)


def _options_of(name: str, options: RawOptions) -> RawOptions:
    return options.for_actions() if name == ACTION else options


def _in_unit(values: Traj, declared: AngleUnit, unit: AngleUnit) -> Float64[np.ndarray, "t 12"]:
    """Return the joints in rad as if recorded in `unit`."""
    factor = {"rad": 1.0, "deg": math.pi / 180}
    return values[:, _JOINTS].astype(np.float64) * (factor[unit] / factor[declared])


def _gripper_finding(name: str, values: Traj, options: RawOptions) -> _Finding | None:
    low, high = options.gripper_range
    recorded = recorded_grippers(values, options)
    fractions = values[:, _GRIPPERS].astype(np.float64)
    seen = f"'{name}' grippers go from {recorded.min():g} to {recorded.max():g}"
    if fractions.min() < -GRIPPER_TOLERANCE or fractions.max() > 1 + GRIPPER_TOLERANCE:
        better = _suggested_gripper_range(float(recorded.min()), float(recorded.max()))
        return _Finding(f"{seen}, outside {low:g}:{high:g}. ", better)
    is_small = np.ptp(recorded) > 0.05 and np.abs(recorded).max() <= _LARGEST_FRACTION
    if max(abs(low), abs(high)) >= _FULL_SCALE and is_small:
        return _Finding(f"{seen}, far too little for {low:g}:{high:g}. These look like 0:1. ", (0.0, 1.0))
    return None


def better_gripper_flags(positions: Mapping[str, Traj], options: RawOptions) -> str | None:
    """Return the flags for the ranges that the grippers seem to have.

    Args and result are those of `better_angle_flags`.
    """
    of = {name: _options_of(name, options) for name in positions}
    findings = {name: _gripper_finding(name, values, of[name]) for name, values in positions.items()}
    better = {name: found.better for name, found in findings.items() if found is not None}
    if not better:
        return None
    ranges: dict[str, GripperRange] = {}
    for name in positions:
        known = better.get(name)
        ranges[name] = known if isinstance(known, tuple) else of[name].gripper_range
    # Two that are both outside share the larger scale, unless one of them reads fractions.
    if len(better) == 2 and (0.0, 1.0) not in ranges.values():
        largest = max(ranges.values(), key=lambda ends: abs(ends[1] - ends[0]))
        ranges = dict.fromkeys(ranges, largest)
    # The other dataset has the range with which it is closest to this one.
    for name, other in ((QPOS, ACTION), (ACTION, QPOS)):
        if name in better and other in positions and other not in better:
            fractions = _fractions(recorded_grippers(positions[name], of[name]), ranges[name])
            recorded = recorded_grippers(positions[other], of[other])
            distance = {
                ends: float(np.abs(_fractions(recorded, ends) - fractions).mean())
                for ends in (of[other].gripper_range, ranges[name])
            }
            ranges[other] = min(distance, key=distance.__getitem__)
    state = ranges.get(QPOS, ranges.get(ACTION, (0.0, 1.0)))
    return _gripper_flags(state, ranges.get(ACTION, state), options)


def recorded_grippers(values: Traj, options: RawOptions) -> Float64[np.ndarray, "t 2"]:
    """Return grippers in the numbers of the file."""
    low, high = options.gripper_range
    return low + values[:, _GRIPPERS].astype(np.float64) * (high - low)


def _fractions(recorded: Float64[np.ndarray, "t 2"], ends: GripperRange) -> Float64[np.ndarray, "t 2"]:
    return (recorded - ends[0]) / (ends[1] - ends[0])
