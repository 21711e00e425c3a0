"""Recordings as they come from the robot: HDF5 episodes read frame by frame, in the contract's layout and units."""

from realman.raw.episode import Episode
from realman.raw.episode import open_episode
from realman.raw.folder import find_episodes
from realman.raw.options import RawOptions

__all__ = ["Episode", "RawOptions", "find_episodes", "open_episode"]
