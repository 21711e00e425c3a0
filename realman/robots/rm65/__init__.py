"""Two real RM65 arms, driven through the vendor's SDK (PyPI `Robotic_Arm`).

One process drives both arms: see `Rm65Robot`. Only this package imports the SDK, and only when a robot connects. The
SDK's wheel holds native libraries for Linux and Windows, and there is none for macOS. Degrees, gripper units and the
SDK's pitfalls do not leave this package.
"""

from realman.robots.rm65.robot import Rm65Robot
from realman.robots.rm65.settings import GripperSettings
from realman.robots.rm65.settings import Rm65Settings

__all__ = ["GripperSettings", "Rm65Robot", "Rm65Settings"]
