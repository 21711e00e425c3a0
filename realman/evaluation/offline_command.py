"""`realman offline`: compare a policy with a held-out recording.

    realman offline --data data/sample/heldout

It needs a running server (`make serve`), and nothing moves. For each episode it writes a plot (PNG) and all numbers
(JSON) to `--out-dir`. It prints a table of errors, compared with the errors of holding still: joints in degrees,
grippers as a fraction of their stroke.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from realman import cli
from realman.data.raw.flags import ReadingFlags
from realman.errors import DatasetError
from realman.errors import ServerError
from realman.evaluation import open_loop
from realman.evaluation import plots
from realman.evaluation import seams
from realman.ranges import ConnectTimeout
from realman.ranges import Count
from realman.ranges import Index
from realman.ranges import Port
from realman.ranges import ReplyTimeout
from realman.runtime import chunks
from realman.runtime.client import API_KEY_ENV
from realman.runtime.client import PolicyClient

SEAM_DELAYS_MS = (0.0, 50.0, 100.0, 200.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(ReadingFlags):
    """Flags of the offline evaluation."""

    data: Path = Path("data/sample/heldout")
    """A recording (HDF5), a folder of recordings, a LeRobot dataset, or what a server recorded (--record)."""
    episodes: tuple[Index, ...] = (0,)
    """Which episodes of a folder or dataset, counted from 0."""
    host: str = "127.0.0.1"
    """Host of the policy server."""
    port: Port = 8000
    """Port of the policy server."""
    connect_timeout: ConnectTimeout = 30.0
    """How long to wait for the server, s."""
    reply_timeout: ReplyTimeout = 120.0
    """How long one prediction may take, s."""
    prompt: str | None = None
    """Task text. By default the recording's own."""
    action_chunk: Count | None = None
    """Steps executed of each prediction. By default as many as the server recommends."""
    out_dir: Path = Path("data/offline")
    """Folder for plots and JSON."""
    seams: bool = False
    """Also play the chunks in each execution mode with simulated delays: jumps at the seams, jerk and stalls."""


def main(args: Args) -> int:
    """Replay recordings through a running policy server and measure its errors."""
    cli.check_place(args.out_dir, "--out-dir")
    if records := open_loop.find_records(args.data):
        return _replay_records(records, args)
    for source in open_loop.find_recordings(args.data, args.episodes, args.options):
        with source as recording, _connect(args, recording.cameras, recording.fps) as client:
            result = open_loop.replay(client, recording, args.prompt)
            _write(result, dict(client.info.metadata), args)
            if args.seams:
                _write_seams(client, recording, args)
    return 0


def _replay_records(records: list[Path], args: Args) -> int:
    if args.seams:
        raise DatasetError(f"{args.data}: found recorded requests, but --seams needs an episode. Leave out --seams")
    cameras, fps = open_loop.recorded_side(records)
    with _connect(args, cameras, fps) as client:
        _write(open_loop.replay_records(client, records, args.prompt), dict(client.info.metadata), args)
    return 0


def _connect(args: Args, cameras: tuple[str, ...], fps: float) -> PolicyClient:
    return PolicyClient.connect(
        args.host,
        args.port,
        cameras=cameras,
        fps=fps,
        action_chunk=args.action_chunk,
        api_key=os.environ.get(API_KEY_ENV),
        connect_timeout_s=args.connect_timeout,
        reply_timeout_s=args.reply_timeout,
    )


def _write(result: open_loop.Replay, metadata: dict, args: Args) -> None:
    args.out_dir.mkdir(parents=True, exist_ok=True)
    summary = open_loop.report(result, metadata)
    recording = result.recording
    json_path, plot_path = args.out_dir / f"{recording.name}.json", args.out_dir / f"{recording.name}.png"
    json_path.write_text(json.dumps(summary, indent=1) + "\n")
    figure = plots.plot_episode(
        recording.action,
        result.predicted,
        result.hold,
        fps=recording.fps,
        inference_frames=result.frames,
        title=_title(summary),
    )
    plots.save(figure, plot_path)
    console = Console()
    console.print(_table(summary))
    console.print(f"plot {plot_path}\nnumbers {json_path}", highlight=False, markup=False, soft_wrap=True)


def _write_seams(client: PolicyClient, recording: open_loop.Recording, args: Args) -> None:
    predict = open_loop.predictor(client, recording, args.prompt)
    num_frames, fps = len(recording.action), recording.fps
    executions = _possible_executions(client)

    # Play the recording in every execution mode with every delay.
    played = list(
        seams.compare(
            predict,
            num_frames,
            fps=fps,
            delays_ms=SEAM_DELAYS_MS,
            action_chunk=client.action_chunk,
            executions=executions,
        )
    )
    # All delays go to the JSON. The plots show the longest one, where the modes differ most.
    json_path = args.out_dir / f"{recording.name}_seams.json"
    json_path.write_text(json.dumps([p.figures() for p in played], indent=1) + "\n")
    slowest: dict[str, np.ndarray] = {p.execution: p.targets for p in played[-len(executions) :]}
    title = f"{recording.name}: execution modes with a delay of {SEAM_DELAYS_MS[-1]:g} ms"
    plot_paths = [args.out_dir / f"{recording.name}_seams{suffix}.png" for suffix in ("", "_speed")]
    for path, speeds in zip(plot_paths, (False, True), strict=True):
        figure = plots.plot_executions(recording.action, slowest, fps=fps, title=title, speeds=speeds)
        plots.save(figure, path)

    console = Console()
    console.print(_seam_table(played))
    places = f"plots {plot_paths[0]}, {plot_paths[1]}\nnumbers {json_path}"
    console.print(places, highlight=False, markup=False, soft_wrap=True)


def _possible_executions(client: PolicyClient) -> tuple[chunks.Execution, ...]:
    try:
        client.require_rtc()
    except ServerError as e:
        Console(stderr=True).print(f"'rtc' is left out: {e}", markup=False, soft_wrap=True)
        return tuple(execution for execution in seams.EXECUTIONS if execution != "rtc")
    return seams.EXECUTIONS


def _seam_table(played: list[seams.Played]) -> Table:
    table = Table(
        title="Execution modes (largest joint step at seams and elsewhere, jerk of all joints)", title_justify="left"
    )
    for heading in ("delay ms", "mode", "seam deg", "max", "else p95", "jerk deg/s^3", "stalls/min", "held s"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for figures in (p.figures() for p in played):
        seam, other = figures["seam_jump_deg"], figures["other_step_deg"]
        steps = ("-" if value is None else f"{value:.2f}" for value in (seam["p50"], seam["max"], other["p95"]))
        table.add_row(
            f"{figures['delay_ms']:.0f}",
            figures["execution"],
            *steps,
            f"{figures['jerk_rms_deg_s3']:.0f}",
            f"{figures['stalls_per_min']:.0f}",
            f"{figures['held_s']:.1f}",
        )
    return table


def _title(summary: dict) -> str:
    server = ", ".join(f"{key} {value}" for key, value in summary["server"].items()) or "unnamed policy"
    joints, grippers = summary["joints"], summary["grippers"]
    return (
        f"{summary['episode']} | {server}\n"
        f"mean error: joints {joints['mae']:.2f} deg ({_times(joints['ratio'])} of holding still), "
        f"grippers {grippers['mae']:.3f} ({_times(grippers['ratio'])})"
    )


def _table(summary: dict) -> Table:
    table = Table(title=f"{summary['episode']}: {summary['frames']} frames, {len(summary['chunks'])} predictions")
    table.title_justify = "left"
    for heading in ("", "unit", "error", "holding still", "ratio", "largest"):
        table.add_column(heading, justify="left" if heading in ("", "unit") else "right", no_wrap=True)
    for row in summary["per_dim"]:
        table.add_row(row["name"], *_cells(row))
    table.add_section()
    for group in ("joints", "grippers"):
        table.add_row(f"all {group}", *_cells(summary[group]))
    table.add_row("all 14", "rad, fraction", "", "", _times(summary["overall_ratio"]), "")
    latency = summary["round_trip_ms"]
    table.caption = f"time per prediction: p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms"
    table.caption_justify = "left"
    return table


def _cells(row: dict) -> tuple[str, ...]:
    digits = 2 if row["unit"] == "deg" else 3
    error, baseline, largest = (f"{row[key]:.{digits}f}" for key in ("mae", "baseline_mae", "max_error"))
    return row["unit"], error, baseline, _times(row["ratio"]), largest


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
