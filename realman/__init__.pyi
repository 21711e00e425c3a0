from .data.raw.episode import Episode as Episode
from .data.raw.episode import open_episode as open_episode
from .data.raw.folder import find_episodes as find_episodes
from .data.raw.options import RawOptions as RawOptions
from .errors import DatasetError as DatasetError
from .errors import EpisodeError as EpisodeError
from .errors import NotConnectedError as NotConnectedError
from .errors import RealmanError as RealmanError
from .errors import RejectedError as RejectedError
from .errors import RobotError as RobotError
from .errors import RobotTimeoutError as RobotTimeoutError
from .errors import ServerError as ServerError
from .errors import SiteError as SiteError
from .robots.robot import Robot as Robot
from .robots.robot import RobotObservation as RobotObservation
from .robots.robot import connected as connected
from .runtime.client import PolicyClient as PolicyClient
from .runtime.client import Prediction as Prediction
from .station.site_config import Site as Site
from .station.site_config import load_site as load_site
from .station.site_config import open_robot as open_robot

__version__: str

__all__ = [
    "DatasetError",
    "Episode",
    "EpisodeError",
    "NotConnectedError",
    "PolicyClient",
    "Prediction",
    "RawOptions",
    "RealmanError",
    "RejectedError",
    "Robot",
    "RobotError",
    "RobotObservation",
    "RobotTimeoutError",
    "ServerError",
    "Site",
    "SiteError",
    "connected",
    "find_episodes",
    "load_site",
    "open_episode",
    "open_robot",
]
