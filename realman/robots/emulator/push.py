"""The state message that a controller pushes over UDP."""

import numpy as np

from realman import kinematics
from realman.robots.emulator.controller import Controller
from realman.robots.emulator.wire import Message
from realman.robots.emulator.wire import euler_to_wire
from realman.robots.emulator.wire import joints_to_wire
from realman.robots.emulator.wire import position_to_wire
from realman.robots.emulator.wire import quaternion_to_wire


def state_message(controller: Controller) -> Message:
    """Return the content of one datagram.

    It holds joints, errors, status and the flange's pose.
    """
    joints = controller.position.joints
    flange = kinematics.forward(joints)
    # The SDK divides the speed by 100 and calls the result deg/s.
    speed = [round(v) for v in (np.rad2deg(controller.motion.velocity) * 100).tolist()]
    return {
        "state": "realtime_arm_joint_state",
        "arm_current_status": str(controller.motion.status),
        "err": controller.errors or [0],
        "joint_status": {
            "joint_current": [500_000] * 6,
            "joint_en_flag": controller.joints_enabled.tolist(),
            "joint_err_code": controller.joint_errors.tolist(),
            "joint_position": joints_to_wire(joints),
            "joint_temperature": [36_000] * 6,
            "joint_voltage": [24_000] * 6,
            "joint_speed": speed,
        },
        "waypoint": {
            "euler": euler_to_wire(flange),
            "position": position_to_wire(flange),
            "quat": quaternion_to_wire(flange),
        },
    }
