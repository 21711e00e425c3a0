from .chunks import AsyncPlayer as AsyncPlayer
from .chunks import ChunkPlayer as ChunkPlayer
from .chunks import ChunkPolicy as ChunkPolicy
from .chunks import RtcPlayer as RtcPlayer
from .chunks import SyncPlayer as SyncPlayer
from .chunks import make_player as make_player
from .client import PolicyClient as PolicyClient
from .client import Prediction as Prediction
from .client import ServerInfo as ServerInfo
from .control import RunRecord as RunRecord
from .control import run as run
from .recording.recorder import Recorder as Recorder
from .safety import Limits as Limits
from .safety import SafetyLayer as SafetyLayer
from .safety import SafetySettings as SafetySettings
from .steering import SteeredPolicy as SteeredPolicy
from .steering import Steering as Steering
from .watchdogs import Watchdogs as Watchdogs
from .workspace import Box as Box

__all__ = [
    "AsyncPlayer",
    "Box",
    "ChunkPlayer",
    "ChunkPolicy",
    "Limits",
    "PolicyClient",
    "Prediction",
    "Recorder",
    "RtcPlayer",
    "RunRecord",
    "SafetyLayer",
    "SafetySettings",
    "ServerInfo",
    "SteeredPolicy",
    "Steering",
    "SyncPlayer",
    "Watchdogs",
    "make_player",
    "run",
]
