"""The operator's view of a run.

In a terminal it is live. Elsewhere it is a plain log line every few seconds. Its thread only reads what the loop has
written, so the loop never waits for a terminal.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import logging
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from realman import spec
from realman.errors import RealmanError
from realman.pacing import Pacer
from realman.pacing import percentiles_ms
from realman.runtime.chunks import ChunkPlayer
from realman.runtime.control import RunRecord
from realman.station.keyboard import Keyboard
from realman.station.run import Run

logger = logging.getLogger(__name__)

_REFRESH_S = 0.25
_LINE_EVERY_S = 5.0
_WINDOW = 100
"""Ticks over which the present rate is measured."""
_BAR_WIDTH = 25


@dataclasses.dataclass
class Watched:
    """What the view reads. Other parts update it during the run."""

    run: Run
    horizon: int
    """Steps of a prediction."""
    keyboard: Keyboard | None = None
    ages_s: Callable[[], dict[str, float]] | None = None
    age_limits_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Largest age by a part of the name, s, for the names of `ages_s` and for 'prediction'. The first match applies."""
    recording: Callable[[], str] | None = None
    """Returns the recording's state in words."""
    keys: str = ""
    """The keys and what they do, in one line."""

    def state(self) -> str:
        """Return the state of the run in one word."""
        steering = self.run.steering
        if steering.is_stopping or steering.is_ending:
            return "STOPPING" if steering.is_stopping else "ENDING"
        if steering.is_paused:
            return "PAUSED"
        return "RUNNING" if self.run.record.sent else "WAITING"


def rate_hz(times_s: list[float]) -> float | None:
    """Return the present rate of ticks, or None after too few."""
    window = times_s[-_WINDOW:]
    return (len(window) - 1) / (window[-1] - window[0]) if len(window) > 1 and window[-1] > window[0] else None


def chunk_use(seams: list[bool]) -> tuple[int, float | None]:
    """Return the played steps of the present chunk and the mean before.

    The mean is over the earlier chunks. It is None without any.
    """
    starts = np.flatnonzero(seams)
    if not len(starts):
        return 0, None
    played = np.diff(starts)
    return len(seams) - int(starts[-1]), float(played.mean()) if len(played) else None


def rows(watched: Watched) -> dict[str, Text]:
    """Return the lines of the view by name."""
    run, state = watched.run, watched.state()
    record, site = run.record, run.site
    return {
        "state": Text.assemble(
            (state, "bold green" if state == "RUNNING" else "bold yellow"),
            f"  {site.robot}, {site.execution}, step {len(record.sent)}",
        ),
        "prompt": _prompt(watched),
        "loop": Text(_loop(record, run.pacer)),
        "latency": Text(_latency(run.player)),
        "chunk": Text(_chunk(record, watched.horizon)),
        "age": _ages(watched),
        **_clamps(record),
        **({"recording": Text(watched.recording())} if watched.recording else {}),
        **({"keys": Text(watched.keys, style="dim")} if watched.keyboard and watched.keyboard.is_active else {}),
    }


def _prompt(watched: Watched) -> Text:
    typed = watched.keyboard.typed if watched.keyboard else None
    if typed is not None:
        return Text(f"new: {typed}_   (Enter: use it, Escape: cancel)", style="bold cyan")
    return Text(watched.run.steering.prompt or "the server's default")


def _loop(record: RunRecord, pacer: Pacer | None) -> str:
    rate = rate_hz(record.times_s)
    text = "-" if rate is None else f"{rate:.1f} Hz"
    if pacer is not None:
        text += f", {pacer.late_ticks} late, worst {pacer.worst_late_s * 1000:.1f} ms"
    return f"{text}, {record.waits} stand-stills, {record.stalled_ticks} held, {record.pauses} pauses"


def _latency(player: ChunkPlayer) -> str:
    figures = percentiles_ms(list(player.round_trips_s))
    if figures is None:
        return "-"
    return (
        f"p50 {figures['p50']:.0f} ms, p95 {figures['p95']:.0f} ms, max {figures['max']:.0f} ms, "
        f"{len(player.round_trips_s)} predictions"
    )


def _chunk(record: RunRecord, horizon: int) -> str:
    played, mean = chunk_use(list(record.seams))
    filled = min(_BAR_WIDTH, round(_BAR_WIDTH * played / max(horizon, 1)))
    used = "" if mean is None else f", {mean:.1f} used on average"
    return f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {played} of {horizon} steps{used}"


def _ages(watched: Watched) -> Text:
    try:
        found = watched.ages_s() if watched.ages_s else {}
    except RealmanError as e:
        return Text(str(e), style="bold red")
    if watched.run.record.prediction_ages_s:
        found["prediction"] = watched.run.record.prediction_ages_s[-1]
    text = Text()
    for name, age_s in found.items():
        limit_s = next((limit for word, limit in watched.age_limits_s.items() if word in name), None)
        style = "red" if limit_s is not None and age_s > limit_s / 2 else ""
        limit = "" if limit_s is None else f"/{limit_s * 1000:.0f}"
        text.append(f"{name} {age_s * 1000:.0f}{limit} ms  ", style=style)
    return text if found else Text("-")


def _clamps(record: RunRecord) -> dict[str, Text]:
    safety = record.safety
    if safety is None:
        return {}
    total = safety.range_clamps + safety.speed_clamps
    lines = {}
    for side, part in spec.ARM_SLICES.items():
        names = (*spec.ARM_JOINTS, "gripper")
        lines[f"limited {side}"] = Text("  ".join(f"{n} {c}" for n, c in zip(names, total[part], strict=True)))
    return lines


def render(watched: Watched) -> Table:
    """Draw the view."""
    table = Table(title="Run", title_justify="left", show_header=False)
    for name, value in rows(watched).items():
        table.add_row(name, value)
    return table


def line(watched: Watched) -> str:
    """Return the view as one plain line, for a log."""
    run, record = watched.run, watched.run.record
    clamped = record.safety.clamped_ticks if record.safety else 0
    return (
        f"{watched.state().lower()}: step {len(record.sent)}, {_loop(record, run.pacer)}, "
        f"latency {_latency(run.player)}, {clamped} limited"
    )


class View:
    """Shows a run until the `with` block ends."""

    def __init__(self, watched: Watched, console: Console | None = None) -> None:
        """Prepare the view.

        Args:
            watched: What to show.
            console: Where to show it. None is stderr.
        """
        self._watched = watched
        self._console = console or Console(stderr=True)
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)

    def __enter__(self) -> "View":
        """Start to show the run."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last state and stop."""
        self._is_closing.set()
        self._thread.join(4 * _REFRESH_S)

    def _run(self) -> None:
        # A broken terminal must not end the run, and no other thread waits for this one.
        try:
            if self._console.is_terminal:
                self._show_live()
            else:
                self._log_lines()
        except Exception:
            logger.exception("view: failed, the run continues without it")

    def _show_live(self) -> None:
        terminal = sys.stderr
        with Live(console=self._console, auto_refresh=False, transient=False) as live, _logs_above(terminal):
            while not self._is_closing.wait(_REFRESH_S):
                live.update(render(self._watched), refresh=True)
            live.update(render(self._watched), refresh=True)

    def _log_lines(self) -> None:
        until_s = time.monotonic() + _LINE_EVERY_S
        while not self._is_closing.wait(_REFRESH_S):
            if time.monotonic() >= until_s:
                until_s += _LINE_EVERY_S
                logger.info("%s", line(self._watched))


@contextlib.contextmanager
def _logs_above(terminal: TextIO) -> Iterator[None]:
    """Let log lines scroll above the view instead of through it.

    Handlers that write to `terminal` write to the present stderr instead, which Rich has replaced.
    """
    handlers = [
        h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler) and h.stream is terminal
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(terminal)
