"""From RealMan recordings to a pi0-family policy running on the arms.

The names below are what your own program may use. They stay until a release says otherwise, and each is loaded when
you first use it. `realman --help` lists the commands.

Rooms: `data` (a recording until it is a proven dataset), `robots` (the arms, real and simulated), `runtime` (the control
loop), `evaluation` (judging a policy before anything moves), `station` (the operator's settings and screen).
"""

import sys
from typing import Any

import lazy_loader

from realman import _moved

__version__ = "0.2.0"

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

sys.meta_path.append(_moved.MovedModules())


def __getattr__(name: str) -> Any:
    # `from realman import client` asks for an attribute first, and would hide what the finder says.
    if place := _moved.MOVED.get(f"{__name__}.{name}"):
        raise ModuleNotFoundError(f"'{__name__}.{name}' is now '{place}'", name=f"{__name__}.{name}")
    return _public(name)
