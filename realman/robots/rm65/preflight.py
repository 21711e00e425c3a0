"""Checks that an arm must pass before it may move.

All checks run even if one fails, so that all problems are reported together.
"""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import numpy as np

from realman import spec
from realman.errors import RejectedError
from realman.kinematics import ArmVec
from realman.robots.rm65 import codes
from realman.robots.rm65.feed import ArmState
from realman.robots.robot import CheckResult

_MODEL = "RM_65"
_DOF = 6
_AGREEMENT_WAIT_S = 1.0
_AGREEMENT_STEP_S = 0.05
_MAX_DISAGREEMENT_DEG = 2.0
"""Largest difference between the pushed and the queried joints of an arm at rest.

A larger one means that they do not come from the same arm or are not in the same unit.
"""


class JointRange(NamedTuple):
    """Range and speed limit of one arm's joints.

    Both the arm's own limits and its controller's apply.
    """

    lower: ArmVec
    """Lower ends, rad."""
    upper: ArmVec
    """Upper ends, rad."""
    max_speed: ArmVec
    """Largest speeds, rad/s."""


def inspect(name: str, arm: Any, latest: Callable[[], ArmState]) -> tuple[list[CheckResult], JointRange]:
    """Check a connected arm without moving or changing anything.

    Args:
        name: Name of the arm, for messages.
        arm: The SDK's `RoboticArm`.
        latest: Returns the newest state push. The first one after connecting may be older than the connection.

    Returns:
        The results of all checks, good and bad, and the joint range.

    Raises:
        RobotError: The controller did not answer a query.
    """
    # The allowed range is where the arm's and the controller's limits overlap.
    lower = _ask(name, "rm_get_joint_min_pos", arm.rm_get_joint_min_pos())
    upper = _ask(name, "rm_get_joint_max_pos", arm.rm_get_joint_max_pos())
    speed = _ask(name, "rm_get_joint_max_speed", arm.rm_get_joint_max_speed())
    joint_range = JointRange(
        np.maximum(spec.ARM_LOWER_RAD, np.deg2rad(lower[:_DOF])),
        np.minimum(spec.ARM_UPPER_RAD, np.deg2rad(upper[:_DOF])),
        np.minimum(spec.ARM_SPEED_RAD_S, np.deg2rad(speed[:_DOF])),
    )
    # Each check asks the controller or reads the state push, which is newer than the answers above.
    state = latest()
    results = [
        _model(name, arm),
        _versions(name, arm),
        _run_mode(name, arm),
        _power(name, arm),
        _enabled(name, arm),
        _joint_errors(name, arm),
        _controller(name, arm),
        _pushed_errors(name, state),
        _agreement(name, arm, latest),
        _in_range(name, state, joint_range),
        _speed(name, joint_range),
        _collision(name, arm),
    ]
    return results, joint_range


def identity(address: str, results: list[CheckResult], joint_range: JointRange) -> dict[str, str]:
    """Return by what an arm is recognized.

    The SDK does not know its serial number.
    """
    ends = [", ".join(f"{end:.1f}" for end in np.rad2deg(values)) for values in joint_range]
    known = {result.check: result.found for result in results if result.check in ("model", "software")}
    return {"address": address, **known, "joint range": f"{ends[0]} to {ends[1]} deg, {ends[2]} deg/s"}


def refuse_another(name: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Refuse an arm that is another one than at the last connect.

    Raises:
        RejectedError: It is. The message names what differs.
    """
    if changed := [f"{key} was {before[key]}, is {now[key]}" for key in now if before.get(key, now[key]) != now[key]]:
        raise RejectedError(
            f"{name}: came back as another arm: {'; '.join(changed)}. Start the program again to accept it"
        )


def refuse_if_any(results: list[CheckResult]) -> None:
    """Refuse the arm if any check failed.

    Raises:
        RejectedError: At least one check failed. The message names all problems.
    """
    problems = [f"{r.arm}: {r.check} is {r.found}, {r.problem}" for r in results if r.problem]
    if problems:
        raise RejectedError("; ".join(problems))


def _ask(name: str, call: str, answer: tuple[int, Any]) -> Any:
    code, value = answer
    codes.check(code, name, call)
    return value


def _model(name: str, arm: Any) -> CheckResult:
    info = _ask(name, "rm_get_robot_info", arm.rm_get_robot_info())
    found = f"{info['arm_model']}, {info['arm_dof']} joints, generation {info['robot_controller_version']}"
    is_good = info["arm_model"] == _MODEL and info["arm_dof"] == _DOF
    return CheckResult(name, "model", found, None if is_good else "expected an RM65 with 6 joints. Check the address")


def _versions(name: str, arm: Any) -> CheckResult:
    info = _ask(name, "rm_get_arm_software_info", arm.rm_get_arm_software_info())
    controller = info.get("ctrl_info", {}).get("version", "unknown")
    return CheckResult(name, "software", f"{info.get('product_version', 'unknown')}, controller {controller}")


def _run_mode(name: str, arm: Any) -> CheckResult:
    is_real = _ask(name, "rm_get_arm_run_mode", arm.rm_get_arm_run_mode()) == 1
    remedy = "expected real: a simulated arm does not move. Switch to real mode on the teach pendant"
    return CheckResult(name, "run mode", "real" if is_real else "simulated", None if is_real else remedy)


def _power(name: str, arm: Any) -> CheckResult:
    is_on = _ask(name, "rm_get_arm_power_state", arm.rm_get_arm_power_state()) == 1
    return CheckResult(name, "power", "on" if is_on else "off", None if is_on else "expected on. Switch the arm on")


def _enabled(name: str, arm: Any) -> CheckResult:
    enabled = _ask(name, "rm_get_joint_en_state", arm.rm_get_joint_en_state())
    off = [joint for joint, on in zip(spec.ARM_JOINTS, enabled, strict=False) if not on]
    found = f"off at {', '.join(off)}" if off else "all on"
    remedy = "expected all on. Enable the joints on the teach pendant"
    return CheckResult(name, "joint enable", found, remedy if off else None)


def _joint_errors(name: str, arm: Any) -> CheckResult:
    flags = arm.rm_get_joint_err_flag()
    codes.check(flags["return_code"], name, "rm_get_joint_err_flag")
    found = [
        codes.describe_joint_error(joint, bits)
        for joint, bits in zip(spec.ARM_JOINTS, flags["err_flag"], strict=False)
        if bits
    ]
    remedy = "expected good. Clear it on the teach pendant"
    return CheckResult(name, "joint state", ", ".join(found) or "good", remedy if found else None)


def _controller(name: str, arm: Any) -> CheckResult:
    state = arm.rm_get_controller_state()
    codes.check(state["return_code"], name, "rm_get_controller_state")
    error = state["system_error"]
    found = (
        codes.describe_system_error(error) if error else f"good, {state['voltage']:.1f} V, {state['temperature']:.0f} C"
    )
    return CheckResult(name, "controller", found, "expected good. Clear it on the teach pendant" if error else None)


def _pushed_errors(name: str, state: ArmState) -> CheckResult:
    problems = state.problems()
    remedy = "expected no error. Clear it on the teach pendant"
    return CheckResult(name, "state push", ", ".join(problems) or "fresh", remedy if problems else None)


def _agreement(name: str, arm: Any, latest: Callable[[], ArmState]) -> CheckResult:
    # Pushes of an earlier connection may still wait in the SDK. Those that are new agree soon, if the arm is at rest.
    until = time.monotonic() + _AGREEMENT_WAIT_S
    while True:
        queried = np.array(_ask(name, "rm_get_joint_degree", arm.rm_get_joint_degree())[:_DOF])
        apart = float(np.abs(np.rad2deg(latest().joints) - queried).max())
        is_good = apart <= _MAX_DISAGREEMENT_DEG
        if is_good or time.monotonic() >= until:
            break
        time.sleep(_AGREEMENT_STEP_S)
    remedy = (
        f"expected at most {_MAX_DISAGREEMENT_DEG:g} deg. "
        "Check that the arm is at rest, and that there is one controller per address"
    )
    return CheckResult(name, "push against query", f"{apart:.2f} deg apart", None if is_good else remedy)


def _in_range(name: str, state: ArmState, joint_range: JointRange) -> CheckResult:
    outside = [
        f"{joint} at {np.rad2deg(q):.1f} deg (range {np.rad2deg(low):.0f}..{np.rad2deg(high):.0f})"
        for joint, q, low, high in zip(spec.ARM_JOINTS, state.joints, joint_range.lower, joint_range.upper, strict=True)
        if not low <= q <= high
    ]
    found = ", ".join(outside) or "inside the range"
    remedy = "expected inside the range. Move the arm back by hand"
    return CheckResult(name, "joint position", found, remedy if outside else None)


def _speed(name: str, joint_range: JointRange) -> CheckResult:
    found = " ".join(f"{speed:.0f}" for speed in np.rad2deg(joint_range.max_speed))
    is_good = bool((joint_range.max_speed > 0).all())
    remedy = "expected above 0. Set it on the teach pendant"
    return CheckResult(name, "joint speed", f"at most {found} deg/s", None if is_good else remedy)


def _collision(name: str, arm: Any) -> CheckResult:
    stage = _ask(name, "rm_get_collision_stage", arm.rm_get_collision_stage())
    return CheckResult(name, "collision detection", f"stage {stage}" if stage else "OFF")
