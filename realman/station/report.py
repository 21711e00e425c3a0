"""The report of a run: a table, run.json and run.npz."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from realman.station.run import Run


def report(run: Run, out_dir: Path) -> None:
    """Print and write the results of a run that sent any target.

    run.json holds the figures, and run.npz holds the run tick by tick.
    """
    if not run.record.sent:
        return
    summary = {
        "ended_by": run.ended_by,
        "task_done": run.task_done,
        "prompt": run.steering.prompt,
        "execution": run.site.execution,
        **run.record.summary(run.player, run.pacer),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    _replace(out_dir / "run.json", (json.dumps(summary, indent=1) + "\n").encode())
    partial = out_dir / ".run.partial.npz"
    np.savez_compressed(partial, **run.record.arrays())  # type: ignore[arg-type]
    partial.replace(out_dir / "run.npz")
    console = Console()
    console.print(_summary_table(summary))
    console.print(
        f"figures {out_dir / 'run.json'}, targets {out_dir / 'run.npz'}", highlight=False, markup=False, soft_wrap=True
    )


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
