"""Recordings as they come from the robot.

HDF5 episodes are read frame by frame, in the contract's layout and units.
"""

from realman.data.raw.episode import Episode
from realman.data.raw.episode import open_episode
from realman.data.raw.folder import find_episodes
from realman.data.raw.options import RawOptions

__all__ = ["Episode", "RawOptions", "find_episodes", "open_episode"]
