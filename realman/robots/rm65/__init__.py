"""Two real RM65 arms through the vendor's SDK (PyPI `Robotic_Arm`), both in one process; see `Rm65Robot`.

The only package that imports the SDK, and only when a robot connects: its wheel holds native libraries for Linux and
Windows and does not exist for macOS. Degrees, gripper units and the SDK's traps end here.
"""

from realman.robots.rm65.robot import Rm65Robot
from realman.robots.rm65.settings import GripperSettings
from realman.robots.rm65.settings import Rm65Settings

__all__ = ["GripperSettings", "Rm65Robot", "Rm65Settings"]
