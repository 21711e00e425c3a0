"""Commands a controller carries out: those answered with a bool, and streams.

Names and spellings of keys are the vendor's, including their irregularities (JSON protocol of generations 3 and 4).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from realman import spec
from realman.robots.emulator.controller import Controller
from realman.robots.emulator.gripper import FULL_OPENING
from realman.robots.emulator.gripper import MAX_SPEED
from realman.robots.emulator.wire import DEG_S_PER_RPM
from realman.robots.emulator.wire import Message
from realman.robots.emulator.wire import joints_from_wire
from realman.robots.emulator.wire import joints_to_wire

Act = Callable[[Controller, Message], bool]

_TOOL_PORT = 1
"""Port of the RS485 line at the tool, as opposed to the controller's own."""

_RTU_MASTER = 0
"""Mode of a generation 4 tool port in which it speaks Modbus."""


class Setter(NamedTuple):
    """A command that is carried out and answered with a bool."""

    key: str
    """Name of the bool in the reply."""
    act: Act
    command: str | None = None
    """Name in the reply if it is not the request's."""
    is_motion: bool = False
    """Whether it is recorded, because it starts, changes or ends a motion."""


def _movej(controller: Controller, request: Message) -> bool:
    return controller.plan(joints_from_wire(request["joint"]), request["v"] / 100)


def _emergency_stop(controller: Controller, request: Message) -> bool:
    if controller.settings.generation == 3:
        return False
    controller.is_emergency_stopped = bool(request["emergency_stop"])
    return controller.stop()


def _set_power(controller: Controller, request: Message) -> bool:
    controller.is_powered = bool(request["arm_power"])
    return controller.stop()


def _set_run_mode(controller: Controller, request: Message) -> bool:
    controller.is_real = bool(request["mode"])
    return True


def _enable_joint(controller: Controller, request: Message) -> bool:
    joint, enable = request["joint_en_state"]
    controller.joints_enabled[joint - 1] = bool(enable)
    return True


def _clear_joint_error(controller: Controller, request: Message) -> bool:
    controller.joint_errors[request["joint_clear_err"] - 1] = 0
    return True


def _joint_max_speed(controller: Controller, request: Message) -> bool:
    joint, milli_rpm = request["joint_max_speed"]
    speed = float(np.deg2rad(milli_rpm / 1000 * DEG_S_PER_RPM))
    if not 0 < speed <= spec.ARM_SPEED_RAD_S[joint - 1]:
        return False
    controller.motion.max_speed[joint - 1] = speed
    return True


def _collision_stage(controller: Controller, request: Message) -> bool:
    stage = request["collision_stage"]
    if stage not in range(9):
        return False
    controller.collision_stage = stage
    return True


def _self_collision(controller: Controller, request: Message) -> bool:
    controller.self_collision = bool(request["set_enable"])
    return True


def _set_push(controller: Controller, request: Message) -> bool:
    if request["cycle"] < 1:
        return False
    push = controller.push
    push.enable, push.cycle = bool(request["enable"]), int(request["cycle"])
    push.port, push.ip = int(request["port"]), str(request["ip"])
    push.custom |= request.get("custom", {})
    return True


def _grip(opening: Callable[[Message], float]) -> Callable[[Controller, Message], bool]:
    def act(controller: Controller, request: Message) -> bool:
        speed = request.get("speed", MAX_SPEED) / MAX_SPEED
        return controller.gripper.move(opening(request), speed=speed, notify=bool(request.get("block", False)))

    return act


def _modbus_mode(is_modbus: Callable[[Message], bool]) -> Act:
    def act(controller: Controller, request: Message) -> bool:
        controller.gripper.is_modbus = is_modbus(request)
        return True

    return act


def _close_modbus(controller: Controller, request: Message) -> bool:
    if request["port"] == _TOOL_PORT:
        controller.gripper.is_modbus = False
    return True


def _write_register(controller: Controller, request: Message) -> bool:
    return controller.gripper.write(request["address"], [request["data"]])


def _write_bytes(controller: Controller, request: Message) -> bool:
    data = request["data"]
    values = [256 * high + low for high, low in zip(data[::2], data[1::2], strict=True)]
    return controller.gripper.write(request["address"], values)


def _write_words(controller: Controller, request: Message) -> bool:
    return request["type"] == _TOOL_PORT and controller.gripper.write(request["address"], request["data"])


SETTERS: dict[str, Setter] = {
    "movej": Setter("receive_state", _movej, is_motion=True),
    "set_arm_stop": Setter("arm_stop", lambda c, r: c.stop(), is_motion=True),
    "set_arm_slow_stop": Setter("arm_slow_stop", lambda c, r: c.stop(slow=True), is_motion=True),
    "set_arm_pause": Setter("arm_pause", lambda c, r: c.motion.pause(), is_motion=True),
    "set_arm_continue": Setter("arm_continue", lambda c, r: c.motion.resume(), is_motion=True),
    "set_arm_delete_trajectory": Setter("arm_delete_trajectory", lambda c, r: c.motion.discard(), is_motion=True),
    "set_arm_emergency_stop": Setter("set_state", _emergency_stop, is_motion=True),
    "clear_system_err": Setter("clear_state", lambda c, r: c.clear_errors()),
    "set_joint_clear_err": Setter("joint_clear_err", _clear_joint_error),
    "set_arm_power": Setter("arm_power", _set_power),
    "set_arm_run_mode": Setter("mode", _set_run_mode),
    "set_joint_en_state": Setter("joint_en_state", _enable_joint),
    "set_joint_max_speed": Setter("joint_max_speed", _joint_max_speed),
    "set_arm_max_line_speed": Setter("arm_line_speed", lambda c, r: r["arm_line_speed"] > 0),
    "set_collision_stage": Setter("collision_state", _collision_stage),
    "set_self_collision_enable": Setter("set_state", _self_collision),
    "set_realtime_push": Setter("state", _set_push),
    "set_gripper_position": Setter("state", _grip(lambda r: r["position"]), "set_gripper", is_motion=True),
    "set_gripper_release": Setter("state", _grip(lambda r: FULL_OPENING), "set_gripper", is_motion=True),
    "set_gripper_pick": Setter("state", _grip(lambda r: 0), "set_gripper", is_motion=True),
    "set_gripper_pick_on": Setter("state", _grip(lambda r: 0), "set_gripper", is_motion=True),
    "set_gripper_route": Setter("state", lambda c, r: c.gripper.set_route(r["min"], r["max"])),
    # Modbus on the tool port: one set of commands per generation.
    "set_modbus_mode": Setter("set_state", _modbus_mode(lambda r: r["port"] == _TOOL_PORT)),
    "close_modbus_mode": Setter("set_state", _close_modbus),
    "write_single_register": Setter("write_state", _write_register, is_motion=True),
    "write_registers": Setter("write_state", _write_bytes, is_motion=True),
    "set_tool_rs485_mode": Setter("set_state", _modbus_mode(lambda r: r["mode"] == _RTU_MASTER)),
    "write_modbus_rtu_registers": Setter("write_state", _write_words, is_motion=True),
}

STREAMS = ("movej_canfd", "movej_follow")
"""Commands that stream targets. A client does not wait for their answer."""


def set_value(controller: Controller, command: str, request: Message) -> Message:
    """Carry out a command of `SETTERS` and return its reply.

    A rejected command changes nothing and is answered with false.
    """
    setter = SETTERS[command]
    is_accepted = not controller.faults.is_rejected(command) and setter.act(controller, request)
    if setter.is_motion:
        controller.record(command, request, is_accepted=is_accepted)
    return {"command": setter.command or command, setter.key: is_accepted}


def stream(controller: Controller, command: str, request: Message) -> Message | None:
    """Take a target of `STREAMS` and return its reply.

    The SDK ignores the reply, so a refusal shows only in the state push.
    """
    target = joints_from_wire(request["joint"])
    is_high = bool(request.get("follow", False))
    error = 1 if controller.faults.is_rejected(command) else controller.follow(target, is_high=is_high)
    controller.record(command, request, is_accepted=error == 0)
    if command == "movej_follow":
        return None
    return {"state": "joint_state", "joint": joints_to_wire(controller.position.joints), "arm_err": error}
