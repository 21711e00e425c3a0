"""A page that shows a person what a policy server is doing.

It is plain HTML, without scripts or resources from elsewhere.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import html
import io
import math
import time
from typing import Any

import numpy as np
from PIL import Image

from openpi.serving.metrics import Answered
from openpi.serving.service import Notice
from openpi.serving.service import Service

_REFRESH_S = 5
_MAX_IMAGES = 6
_IMAGE_SIZE_PX = (400, 300)
_MAX_BARS = 150

# The plot, in units of its own. The bars are between the labels of the axis on the left and the right edge.
_PLOT_WIDTH, _PLOT_HEIGHT, _LEFT, _FOOT = 960, 200, 56, 22

# Parts of a bar from the bottom up. Their colors are in the style sheet.
_PARTS = ("model", "preprocess", "postprocess", "queue")

_STYLE = """
:root{--ink:#1d2530;--soft:#66707c;--line:#dfe3e8;--page:#f5f6f8;--card:#fff;--good:#1f7a3d;--wait:#a85b00;--bad:#b3261e;
--model:#3566a8;--preprocess:#5fa777;--postprocess:#d0a030;--queue:#a9b1bb}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#98a2ae;--line:#333b46;--page:#14181d;--card:#1c2229;--good:#2f9e58;
--wait:#c77a1a;--bad:#e0655d;--model:#6f9fe0;--preprocess:#74c08d;--postprocess:#e0b850;--queue:#6c7682}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;max-width:1040px;margin:0 auto;padding:28px 20px;color:var(--ink);
background:var(--page)}header{display:flex;flex-wrap:wrap;align-items:center;gap:4px 14px}h1{font-size:1.5em;margin:0}
.state{padding:1px 12px;border-radius:99px;color:#fff;font-weight:600}header p{flex-basis:100%;margin:0;color:var(--soft)}
header b{color:var(--ink);font-weight:600}section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:16px 18px;margin-top:16px}h2{font-size:1em;margin:0 0 10px}h2 small{font-weight:normal;color:var(--soft);margin-left:8px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:1px;background:var(--line);padding:0;overflow:hidden}
.tiles div{background:var(--card);padding:12px 18px}.tiles b{display:block;font-size:1.5em;line-height:1.25;font-weight:600;
font-variant-numeric:tabular-nums}.tiles span,.key,figcaption,.numbers span,th{color:var(--soft)}.tiles .bad b{color:var(--bad)}
svg{display:block;width:100%;height:auto}svg text{font-size:13px;fill:var(--soft)}.grid{stroke:var(--line)}.keys{margin:8px 0 0}
.key{margin-right:18px}.key:before{content:"";display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px;
background:var(--c)}.images{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:14px}figure{margin:0}
img{display:block;width:100%;border-radius:6px}figcaption{font-size:.87em;margin-top:4px}.numbers{display:grid;gap:8px 12px;
grid-template-columns:repeat(7,1fr);margin:14px 0 0}.numbers span{display:block;font-size:.8em;overflow:hidden;text-overflow:ellipsis}
.numbers b{font-weight:500;font-variant-numeric:tabular-nums}.prompt{margin:12px 0 0}.prompt span{color:var(--soft);margin-right:12px}summary{cursor:pointer;font-weight:600}
table{border-collapse:collapse;margin-top:10px}td,th{text-align:left;padding:2px 18px 2px 0;vertical-align:top;font-weight:normal}
td{overflow-wrap:anywhere}@media(max-width:700px){.numbers{grid-template-columns:repeat(auto-fill,minmax(110px,1fr))}}
"""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the page shows.

    It is taken on the event loop, so that another thread may draw the page.
    """

    state: str
    metadata: Mapping[str, Any]
    counters: Mapping[str, float]
    errors: Mapping[str, int]
    recent: Sequence[Answered]
    observation: Mapping[str, Any] | None
    notices: Sequence[Notice] = ()

    @classmethod
    def of(cls, service: Service) -> "Snapshot":
        """Return a copy of the server's state and counters."""
        state = "stopping" if service.is_draining else "ready" if service.is_ready else "warming up"
        counters = {"requests": service.metrics.num_requests, **service.gauges()}
        del counters["ready"]
        counters.pop("recording", None)
        errors, recent = dict(service.metrics.num_errors), tuple(service.metrics.recent)
        notices = [*service.notices]
        if service.recording is not None and service.recording.problem is not None:
            notices.append(
                Notice(time.time(), f"recorder: the latest record was not written ({service.recording.problem})")
            )
        return cls(state, service.metadata, counters, errors, recent, service.last_observation, notices)


def render(snapshot: Snapshot) -> str:
    """Return the page as HTML."""
    title = _text(snapshot.metadata.get("robot", "policy server"))
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH_S}">',
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style></head><body>',
        *_header(title, snapshot),
        *_tiles(snapshot),
        *_notices(snapshot.notices),
        *_latency(snapshot.recent[-_MAX_BARS:]),
        *_observation(snapshot),
        *_contract(snapshot.metadata),
        "</body></html>",
    ]
    return "\n".join(parts)


def _header(title: str, snapshot: Snapshot) -> Iterator[str]:
    color = "good" if snapshot.state == "ready" else "wait"
    yield f'<header><h1>{title}</h1><span class="state" style="background:var(--{color})">{_text(snapshot.state)}</span>'
    names = {"config": "config", "checkpoint": "checkpoint", "step": "step", "prompt": "default prompt"}
    shown = [
        f"{label} <b>{_text(snapshot.metadata[key])}</b>"
        for key, label in names.items()
        if snapshot.metadata.get(key) is not None
    ]
    yield f"<p>{' &middot; '.join(shown)}</p></header>"


def _tiles(snapshot: Snapshot) -> Iterator[str]:
    """Yield the numbers to check first."""
    tiles = [(name.replace("_", " "), f"{value:,.0f}", "") for name, value in snapshot.counters.items()]
    errors = sum(snapshot.errors.values())
    by_code = ", ".join(f"{count} {code.replace('_', ' ')}" for code, count in sorted(snapshot.errors.items()))
    tiles.insert(1, (f"errors: {by_code}" if errors else "errors", f"{errors:,}", "bad" if errors else ""))
    cells = (f'<div class="{kind}"><b>{value}</b><span>{_text(name)}</span></div>' for name, value, kind in tiles)
    yield f'<section class="tiles">{"".join(cells)}</section>'


def _notices(notices: Sequence[Notice]) -> Iterator[str]:
    """Yield what a person should look at, the newest first."""
    if not notices:
        return
    rows = (
        f"<tr><th>{time.strftime('%H:%M:%S', time.localtime(notice.time_s))}</th><td>{_text(notice.text)}</td></tr>"
        for notice in reversed(notices)
    )
    yield f"<section><h2>To look at</h2><table>{''.join(rows)}</table></section>"


def _latency(recent: Sequence[Answered]) -> Iterator[str]:
    if not recent:
        yield "<section><h2>Latency</h2>No request has been answered yet.</section>"
        return
    totals = np.array([answered.phases_ms["total"] for answered in recent])
    p50, p99 = np.percentile(totals, [50, 99])
    yield (
        f"<section><h2>Latency <small>Median {p50:.1f} ms, 99% {p99:.1f} ms, longest {totals.max():.1f} ms over the last "
        f"{len(recent)} requests, the newest {time.time() - recent[-1].time_s:.0f} s ago</small></h2>"
    )
    yield _plot(recent, float(totals.max()))
    keys = "".join(f'<span class="key" style="--c:var(--{part})">{part}</span>' for part in _PARTS)
    yield f'<p class="keys">{keys}</p></section>'


def _plot(recent: Sequence[Answered], longest_ms: float) -> str:
    """Return an SVG with one bar per request.

    The newest bar is at the right edge, and the grid lines are at round numbers.
    """
    # Two or three round grid lines above zero, at any latency.
    tick_ms = _round_up(longest_ms / 3)
    top_ms = tick_ms * max(1, math.ceil(longest_ms / tick_ms))
    scale = (_PLOT_HEIGHT - 10) / top_ms
    drawn = []
    for number in range(round(top_ms / tick_ms) + 1):
        y = _PLOT_HEIGHT - scale * number * tick_ms
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"{number * tick_ms:g} ms" if number else "0"
        drawn.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    # One stacked bar per request, from the right edge to the left.
    step = (_PLOT_WIDTH - _LEFT) / _MAX_BARS
    for age, answered in enumerate(reversed(recent), start=1):
        y = float(_PLOT_HEIGHT)
        for part in _PARTS:
            height = scale * answered.phases_ms.get(part, 0.0)
            y -= height
            x = _PLOT_WIDTH - age * step
            drawn.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{height:.1f}" fill="var(--{part})"/>'
            )
    foot = _PLOT_HEIGHT + _FOOT - 4
    drawn.append(f'<text x="{_PLOT_WIDTH}" y="{foot}" text-anchor="end">newest</text>')
    return (
        f'<svg viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT + _FOOT}" role="img" '
        f'aria-label="latency of each request, by phase">{"".join(drawn)}</svg>'
    )


def _round_up(value: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-3)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def _observation(snapshot: Snapshot) -> Iterator[str]:
    observation = snapshot.observation
    if observation is None:
        return
    units = _text(_plain(snapshot.metadata.get("units", "")))
    yield f'<section><h2>Last observation <small>{units}</small></h2><div class="images">'
    for path, image in list(_images(observation, ""))[:_MAX_IMAGES]:
        data = base64.b64encode(_jpeg(image)).decode()
        name = _text(path.rpartition("/")[2])
        caption = f"{name}, {image.shape[1]} x {image.shape[0]}"
        yield f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}"><figcaption>{caption}</figcaption></figure>'
    yield "</div>"
    for key, value in observation.items():
        if isinstance(value, np.ndarray) and value.ndim <= 1 and value.dtype.kind in "iuf" and value.size <= 64:
            yield _numbers(key, np.atleast_1d(value).tolist(), snapshot.metadata.get("dim_names"))
        elif isinstance(value, str):
            yield f'<p class="prompt"><span>{_text(key)}</span>{_text(value)}</p>'
    yield "</section>"


def _numbers(key: str, values: list[float], names: Any) -> str:
    if not isinstance(names, Sequence) or len(names) != len(values):
        names = [f"{key}[{i}]" for i in range(len(values))]
    cells = (
        f"<div><span>{_text(str(name).replace('_', ' '))}</span><b>{value:.3f}</b></div>"
        for name, value in zip(names, values, strict=True)
    )
    return f'<div class="numbers">{"".join(cells)}</div>'


def _contract(metadata: Mapping[str, Any]) -> Iterator[str]:
    rows = (f"<tr><th>{_text(key)}</th><td>{_text(_plain(value))}</td></tr>" for key, value in metadata.items())
    yield f"<section><details><summary>Metadata sent to clients</summary><table>{''.join(rows)}</table></details></section>"


def _plain(value: Any) -> str:
    """Return a value of the metadata in readable form."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(item) for item in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _images(tree: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield path and pixels of each image in an observation.

    Pixels are [h, w, 3]. An image is a uint8 array [h, w, 3] or [3, h, w] at any depth.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _images(value, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, np.ndarray) and tree.dtype == np.uint8 and tree.ndim == 3 and tree.size:
        if tree.shape[-1] == 3:
            yield path, tree
        elif tree.shape[0] == 3:
            yield path, np.moveaxis(tree, 0, -1)


def _jpeg(image: np.ndarray) -> bytes:
    thumbnail = Image.fromarray(np.ascontiguousarray(image))
    thumbnail.thumbnail(_IMAGE_SIZE_PX)
    with io.BytesIO() as file:
        thumbnail.save(file, "JPEG", quality=85)
        return file.getvalue()


def _text(value: Any) -> str:
    """Escape text that may come from a client or a file."""
    return html.escape(str(value)[:2000])
