"""One run with everything that belongs to it and its outcome."""

import dataclasses

from realman.pacing import Pacer
from realman.runtime.chunks import ChunkPlayer
from realman.runtime.control import RunRecord
from realman.runtime.steering import Steering
from realman.station import site_config


@dataclasses.dataclass
class Run:
    """What a run works with, and what came of it."""

    site: site_config.Site
    player: ChunkPlayer
    """Renewed after each pause; its figures go on."""
    steering: Steering
    record: RunRecord = dataclasses.field(default_factory=RunRecord)
    pacer: Pacer | None = None
    ended_by: str = "an internal error"
    task_done: bool | None = None
    """Whether the simulated task succeeded; None when nobody can tell."""
