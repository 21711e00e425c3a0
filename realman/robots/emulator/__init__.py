"""An emulated RealMan arm controller on loopback.

It speaks JSON over TCP, pushes its state over UDP, and has motion, a gripper and faults. It answers the vendor's own
SDK well enough to connect, move, grip, stop and read state, so the real driver is tested without an arm. Each module
knows one thing:

    wire        integers on the wire <-> rad, m, and the framing of lines
    settings    one arm's address, identity and limits
    motion      how a controller turns commands into joint motion
    physics     what the joints then do (kinematic)
    scene       what the joints then do in the MuJoCo cell
    gripper     the two grippers: native EG2-4C2 and Modbus CTAG
    controller  one arm: its state, its motion, its record of commands
    protocol    which reply a request gets: the tables of `queries` and `commands`
    push        the UDP state message
    faults      what can be broken
    prompt      faults that you type at the running emulator
    server      sockets and clock
    robot       all of it behind the real driver, with the simulated cell and its cameras

`realman emulator` runs two arms until Ctrl-C.
"""

from realman.robots.emulator.controller import Controller
from realman.robots.emulator.controller import MotionRecord
from realman.robots.emulator.faults import Faults
from realman.robots.emulator.server import Emulator
from realman.robots.emulator.settings import ArmSettings

__all__ = ["ArmSettings", "Controller", "Emulator", "Faults", "MotionRecord"]
