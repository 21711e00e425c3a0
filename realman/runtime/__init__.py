"""The control loop, from a policy server's chunks to safe targets.

    client.py      asks the policy server, and checks its replies
    chunks.py      turns chunks into targets: sync, async, blend, rtc
    control.py     the loop
    safety.py      limits of speed, acceleration and range (`workspace.py`: boxes in space)
    watchdogs.py   stops when something is too old or too late
    steering.py    pause, prompt, end: what the operator asks of a run
    recording/     episodes recorded while a policy runs

The names in `__all__` are public. Each is loaded when you first use it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
