from .checks import EpisodeReport as EpisodeReport
from .checks import check_episode as check_episode
from .checks import compare_episodes as compare_episodes
from .raw.episode import Episode as Episode
from .raw.episode import open_episode as open_episode
from .raw.folder import find_episodes as find_episodes
from .raw.options import RawOptions as RawOptions

__all__ = [
    "Episode",
    "EpisodeReport",
    "RawOptions",
    "check_episode",
    "compare_episodes",
    "find_episodes",
    "open_episode",
]
