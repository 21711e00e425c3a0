from .metrics import ActionErrors as ActionErrors
from .metrics import action_errors as action_errors
from .open_loop import Recording as Recording
from .open_loop import Replay as Replay
from .open_loop import find_recordings as find_recordings
from .open_loop import replay as replay
from .open_loop import report as report
from .plots import plot_episode as plot_episode
from .plots import plot_executions as plot_executions
from .seams import Played as Played
from .seams import compare as compare

__all__ = [
    "ActionErrors",
    "Played",
    "Recording",
    "Replay",
    "action_errors",
    "compare",
    "find_recordings",
    "plot_episode",
    "plot_executions",
    "replay",
    "report",
]
