"""Judge a policy before anything moves.

    open_loop.py        asks the policy about a recording (`offline_command.py`: `realman offline`)
    metrics.py          errors against the recorded actions
    seams.py            jumps where one chunk follows another, with simulated delays
    plots.py            the figures

The names in `__all__` are public. Each is loaded when you first use it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
