"""Everything that the control loop can drive, and its cameras.

    robot.py   the protocol: connect, observe, send, stop, disconnect
    limits.py  speed, acceleration and range of every command
    rm65/      two RM65 arms over the vendor's SDK
    emulator/  `realman emulator`: arm controllers that the vendor's SDK can drive
    sim/       two arms and their cameras in MuJoCo, and `realman sample`
    replay.py  a recording as a robot
    cameras/   OpenCV and RealSense cameras, each read by a thread of its own

The names in `__all__` are public. Each is loaded when you first use it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
