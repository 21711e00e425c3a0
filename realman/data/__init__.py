"""From recordings to a verified dataset: read, check, convert, inspect, verify.

    raw/         HDF5 recordings, read frame by frame in the contract's layout and units
    checks.py    what is refused before anything is written
    dataset/     the LeRobot v2.1 dataset: its layout, writers and upgrade
    convert.py   `realman convert`: recordings to a dataset
    inspection/  `realman inspect`: a report of problems and their fixes
    verify/      `realman verify`: the dataset compared with its recordings by the official lerobot

The names in `__all__` are public. Each is loaded when you first use it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
