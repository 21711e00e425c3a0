"""The report of a run: a table, run.json and run.npz."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from realman.station.run import Run

logger = logging.getLogger(__name__)


def report(run: Run, out_dir: Path) -> bool:
    """Print and write the results of a run that sent any target.

    run.json holds the figures, and run.npz holds the run tick by tick. The reason why the run ended is printed first, and
    a disk or a terminal that is gone never replaces it by an error of its own.

    Returns:
        Whether everything could be written.
    """
    if not run.record.sent:
        return True
    summary = {
        "ended_by": run.ended_by,
        "task_done": run.task_done,
        "prompt": run.steering.prompt,
        "execution": run.site.execution,
        **run.record.summary(run.player, run.pacer),
    }
    is_printed = _print(_summary_table(summary), summary["ended_by"])
    try:
        _write(run, summary, out_dir)
    except OSError as e:
        logger.error("%s: the report could not be written (%s)", out_dir, e.strerror or e)
        return False
    return is_printed and _print(
        Text(f"figures {out_dir / 'run.json'}, targets {out_dir / 'run.npz'}"), summary["ended_by"]
    )


def _print(content: Table | Text, ended_by: str) -> bool:
    try:
        Console().print(content, soft_wrap=isinstance(content, Text))
    except OSError as e:
        logger.error("the report could not be printed (%s). The run ended by: %s", e.strerror or e, ended_by)
        return False
    return True


def _write(run: Run, summary: dict[str, Any], out_dir: Path) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    _replace(out_dir / "run.json", (json.dumps(summary, indent=1) + "\n").encode())
    partial = out_dir / ".run.partial.npz"
    np.savez_compressed(partial, **run.record.arrays())  # type: ignore[arg-type]
    partial.replace(out_dir / "run.npz")


def _replace(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _summary_table(summary: dict[str, Any]) -> Table:
    table = Table(title="Run", title_justify="left", show_header=False)
    rows = {
        "ended by": summary["ended_by"],
        "task": {None: "not judged", True: "done", False: "not done"}[summary["task_done"]],
        "steps": f"{summary['steps']} in {summary['duration_s']:.1f} s with {summary['stand_stills']} stand-stills, "
        f"{summary['stalled_steps']} held for a late chunk",
        "predictions": f"{summary['predictions']}, {_milliseconds(summary['round_trip_ms'])}{_unexpected(summary)}",
        "on the server": _milliseconds(summary["infer_ms"]),
        "late steps": _late(summary),
        "limited steps": f"{summary['clamped_steps']} (range: {_counts(summary['range_clamps'])} / "
        f"speed: {_counts(summary['speed_clamps'])})",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _milliseconds(latency: dict[str, float] | None) -> str:
    return f"p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms, max {latency['max']:.0f} ms" if latency else "-"


def _unexpected(summary: dict[str, Any]) -> str:
    late = summary["late_predictions"]
    return "" if late is None else f", {late} later than expected"


def _late(summary: dict[str, Any]) -> str:
    if summary["late_steps"] is None:
        return "- (simulated time)"
    return f"{summary['late_steps']}, worst {summary['worst_late_ms']:.1f} ms"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
