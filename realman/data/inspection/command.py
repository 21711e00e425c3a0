"""Inspect recordings or a dataset: realman inspect --data PATH.

Writes `report.html` and `report.json` to the output folder, a summary to the terminal, and the report's path to stdout.
The exit code is 1 when there are errors.
"""

import dataclasses
import json
import logging
from pathlib import Path
import sys
import time
from typing import Annotated

from rich.console import Console
import tyro

from realman import cli
from realman import spec
from realman.data.inspection import report
from realman.data.inspection import summary
from realman.data.inspection import terminal
from realman.data.inspection.diagnosis import diagnose
from realman.data.inspection.inspected_data import open_data
from realman.data.inspection.measure import measure_all
from realman.data.inspection.norm_stats import read_state_stats
from realman.data.inspection.survey import HighView
from realman.data.inspection.survey import Survey
from realman.data.raw.flags import ReadingFlags
from realman.ranges import Workers

logger = logging.getLogger(__name__)

REPORT = "report.html"
NUMBERS = "report.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(ReadingFlags):
    """Flags of the inspection.

    Those about recordings are the same as the converter's.
    """

    data: Annotated[Path, tyro.conf.arg(aliases=["--raw-dir"])]
    """Folder of episode_<n>.hdf5 recordings, a single recording, or a LeRobot v2.0 or v2.1 dataset."""
    out_dir: Path = Path("data/inspection")
    """Folder for report.html and report.json."""
    cameras: tuple[str, ...] = spec.CAMERAS
    """Cameras that you are going to convert."""
    high_view: HighView = "unknown"
    """Where cam_high is: behind the robot and looking the same way (from_robot), or facing it (towards_robot).
    This shows whether arms or wrist cameras are swapped, if they do not match."""
    norm_stats: Path | None = None
    """norm_stats.json of a training run, to check whether it fits this data."""
    workers: Workers | None = None
    """Episodes to inspect at the same time. By default one per core."""


def main(args: Args) -> int:
    """Inspect recordings or a dataset and write a report."""
    started = time.monotonic()
    cli.check_place(args.out_dir, "--out-dir")
    data = open_data(args.data, args.options)
    norm_stats = None if args.norm_stats is None else read_state_stats(args.norm_stats)
    episodes = tuple(measure_all(data, args.cameras, args.workers))
    survey = Survey(data, args.cameras, args.high_view, norm_stats, episodes)
    findings = diagnose(survey)
    # The report for people, the numbers for scripts, the summary for the terminal.
    args.out_dir.mkdir(parents=True, exist_ok=True)
    page = args.out_dir / REPORT
    page.write_text(report.render(survey, findings), encoding="utf-8")
    numbers = json.dumps(summary.as_json(survey, findings), indent=2, ensure_ascii=False)
    (args.out_dir / NUMBERS).write_text(numbers + "\n", encoding="utf-8")
    terminal.print_summary(survey, findings, Console(stderr=True, highlight=False))
    logger.info("inspected %d episodes in %.1f s", len(episodes), time.monotonic() - started)
    sys.stdout.write(f"{page}\n")
    return 1 if any(f.grade == "error" for f in findings) else 0
