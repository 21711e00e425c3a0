"""From RealMan recordings to a pi0-family policy running on the arms.

The names below are what your own program may use. They stay until a release says otherwise, and each is loaded when
you first use it. `realman --help` lists the commands.

Rooms: `data` (a recording until it is a proven dataset), `robots` (the arms, real and simulated), `runtime` (the control
loop), `evaluation` (judging a policy before anything moves), `station` (the operator's settings and screen).
"""

import sys

import lazy_loader

from realman import _moved

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

sys.meta_path.append(_moved.MovedModules())
