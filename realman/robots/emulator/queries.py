"""Queries a controller answers. None of them changes an arm.

Names and spellings of keys are the vendor's, including their irregularities (JSON protocol of generations 3 and 4).
"""

from collections.abc import Callable
from typing import Any

from realman import kinematics
from realman.robots.emulator.controller import Controller
from realman.robots.emulator.motion import Status
from realman.robots.emulator.settings import JOINT_ACCELERATION_RAD_S2
from realman.robots.emulator.wire import Message
from realman.robots.emulator.wire import euler_to_wire
from realman.robots.emulator.wire import joints_to_wire
from realman.robots.emulator.wire import position_to_wire
from realman.robots.emulator.wire import speeds_to_wire

Query = Callable[[Controller, Message], Message | None]

_BUILD = {"build_time": "2024/05/20 10:00:00", "version": "V1.7.0"}

# RM65-B, one row per joint: alpha 0.001 deg, a 1e-6 m, d 1e-6 m, offset 0.001 deg.
_DH_ROWS = (
    (0, 0, 240500, 0),
    (90000, 0, 0, 90000),
    (0, 256000, 0, 90000),
    (90000, 0, 210000, 0),
    (-90000, 0, 0, 0),
    (90000, 0, 144000, 0),
)


# ---- what a controller is -------------------------------------------------------------------------------------------


def _software_info(controller: Controller, _request: Message) -> Message:
    info: dict[str, Any] = {
        "command": "arm_software_info",
        "Product_version": controller.settings.product,
        "algorithm_info": {"version": "1.6.0"},
        "ctrl_info": _BUILD,
    }
    if controller.settings.generation == 3:
        return info | {"dynamic_info": {"model_version": "1"}, "plan_info": _BUILD}
    return info | {"robot_controller_version": "4.0", "communication_info": _BUILD, "program_info": _BUILD}


def _dh_data(_controller: Controller, _request: Message) -> Message:
    return {"command": "get_DH_data"} | {f"joint_{i}": list(row) for i, row in enumerate(_DH_ROWS, start=1)}


def _limits(state: str, key: str, sign: int) -> Query:
    return lambda c, _: {"state": state, key: joints_to_wire(sign * c.settings.joint_limit)}


# ---- what it is doing -----------------------------------------------------------------------------------------------


def _arm_state(controller: Controller, _request: Message) -> Message:
    joints = controller.position.joints
    flange = kinematics.forward(joints)
    pose = position_to_wire(flange) + euler_to_wire(flange)
    # Firmware up to 1.6 sends arm_err and sys_err, later firmware sends err. Each SDK reads its own.
    errors = {"arm_err": 0, "sys_err": _first_error(controller), "err": _errors(controller)}
    return {"state": "current_arm_state", "arm_state": {"joint": joints_to_wire(joints), "pose": pose} | errors}


def _all_state(controller: Controller, _request: Message) -> Message:
    state = {
        "temperature": [36000] * 6,
        "current": [500] * 6,
        "voltage": [24000] * 6,
        "err_flag": controller.joint_errors.tolist(),
        "en_flag": controller.joints_enabled.astype(int).tolist(),
        "err": _errors(controller),
    }
    return {"state": "arm_all_state", "all_state": state}


def _errors(controller: Controller) -> list[int]:
    return controller.errors or [0]


def _first_error(controller: Controller) -> int:
    return _errors(controller)[0]


def _current_trajectory(controller: Controller, _request: Message) -> Message:
    is_planned = controller.motion.status in (Status.MOVE_J, Status.PAUSE)
    # The SDK derives the number of joints from the length of `data`.
    data = joints_to_wire(controller.position.joints)
    return {"state": "arm_current_trajectory", "type": "movej" if is_planned else "none", "data": data}


def _controller_state(controller: Controller, _request: Message) -> Message:
    return {
        "state": "controller_state",
        "voltage": 24000,
        "current": 1500,
        "temperature": 42000,
        "err_flag": _first_error(controller),
    }


def _gripper_state(controller: Controller, _request: Message) -> Message | None:
    gripper, opening = controller.gripper, controller.position.gripper
    if gripper.is_modbus:
        return None
    return {
        "command": "get_gripper_state",
        "enable": 1,
        "status": 1,
        "error": 0,
        "mode": int(gripper.mode(opening)),
        "current_force": 0,
        "temperature": 40,
        "actpos": round(opening * 1000),
    }


def _get_push(controller: Controller, _request: Message) -> Message:
    push = controller.push
    return {
        "command": "get_realtime_push",
        "cycle": push.cycle,
        "enable": push.enable,
        "force_coordinate": push.force_coordinate,
        "ip": push.ip,
        "port": push.port,
        "custom": dict(push.custom),
    }


def _read_registers(controller: Controller, request: Message) -> Message:
    command = request["command"]
    values = controller.gripper.read(request["address"], request.get("num", 1), controller.position.gripper)
    if values is None:
        return {"command": command, "read_state": False}
    if "num" not in request:
        return {"command": command, "data": values[0]}
    if command == "read_modbus_rtu_holding_registers":
        return {"command": command, "data": values}
    return {"command": command, "data": [byte for v in values for byte in divmod(v, 256)]}


QUERIES: dict[str, Query] = {
    "get_arm_software_info": _software_info,
    "get_arm_current_trajectory": _current_trajectory,
    "get_realtime_push": _get_push,
    "get_current_work_frame": lambda c, r: {"state": "current_work_frame", "frame_name": "World", "pose": [0] * 6},
    "get_current_tool_frame": lambda c, r: {
        "state": "current_tool_frame",
        "tool_name": "Arm_Tip",
        "pose": [0] * 6,
        "payload": 0,
        "position": [0, 0, 0],
    },
    "get_install_pose": lambda c, r: {"state": "install_pose", "pose": [0, 0, 0]},
    "get_joint_min_pos": _limits("joint_min_pos", "min_pos", -1),
    "get_joint_max_pos": _limits("joint_max_pos", "max_pos", 1),
    "get_joint_max_acc": lambda c, r: {
        "state": "joint_max_acc",
        "joint_acc": speeds_to_wire(JOINT_ACCELERATION_RAD_S2),
    },
    "get_joint_max_speed": lambda c, r: {"state": "joint_max_speed", "joint_speed": speeds_to_wire(c.motion.max_speed)},
    "get_DH_data": _dh_data,
    "get_joint_degree": lambda c, r: {"state": "joint_degree", "joint": joints_to_wire(c.position.joints)},
    "get_current_arm_state": _arm_state,
    "get_arm_all_state": _all_state,
    "get_joint_err_flag": lambda c, r: {
        "state": "joint_err_flag",
        "err_flag": c.joint_errors.tolist(),
        "brake_state": [0] * 6,
    },
    "get_joint_en_state": lambda c, r: {"state": "joint_en_state", "en_state": c.joints_enabled.astype(int).tolist()},
    "get_controller_state": _controller_state,
    "get_arm_power_state": lambda c, r: {"state": "arm_power_state", "power_state": int(c.is_powered)},
    "get_arm_run_mode": lambda c, r: {"command": "get_arm_run_mode", "mode": int(c.is_real)},
    "get_collision_stage": lambda c, r: {"state": "get_collision_stage", "collision_stage": c.collision_stage},
    "get_self_collision_enable": lambda c, r: {
        "command": "get_self_collision_enable",
        "enable_state": c.self_collision,
    },
    "get_gripper_state": _gripper_state,
    "read_holding_registers": _read_registers,
    "read_multiple_holding_registers": _read_registers,
    "read_modbus_rtu_holding_registers": _read_registers,
}
