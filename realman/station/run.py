"""One run of the client: its parts and its outcome."""

import dataclasses

from realman.pacing import Pacer
from realman.runtime.chunks import ChunkPlayer
from realman.runtime.control import RunRecord
from realman.runtime.steering import Steering
from realman.station import site_config


@dataclasses.dataclass
class Run:
    """The parts of a run, and its outcome."""

    site: site_config.Site
    player: ChunkPlayer
    """Replaced after each pause. The new one continues the figures."""
    steering: Steering
    record: RunRecord = dataclasses.field(default_factory=RunRecord)
    pacer: Pacer | None = None
    ended_by: str = "an internal error"
    task_done: bool | None = None
    """Whether the simulated task succeeded. None if the robot does not know."""
