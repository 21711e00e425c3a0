"""A page for a person who wants to see what a policy server is doing: plain HTML, no scripts, nothing from elsewhere."""

import base64
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import html
import io
import json
import time
from typing import Any

import numpy as np
from PIL import Image

from openpi.serving.metrics import Answered
from openpi.serving.service import Service

_REFRESH_S = 5
_MAX_PICTURES = 6
_PICTURE_SIZE_PX = (288, 216)
_PLOT_WIDTH, _PLOT_HEIGHT = 900, 160
_MAX_BARS = 150

# Parts of a bar from the bottom up, with their colours.
_COLOURS = {"model": "#3b6ea5", "preprocess": "#7fb07f", "postprocess": "#c9a227", "queue": "#b0b0b0"}

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222;background:#fafafa}
h1{font-size:1.4em;margin:0}h2{font-size:1.05em;margin:1.8em 0 .5em}.state{padding:.1em .6em;border-radius:1em;color:#fff}
table{border-collapse:collapse}td,th{text-align:left;padding:.15em 1.2em .15em 0;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}th{color:#666;font-weight:normal}
figure{display:inline-block;margin:0 1em 1em 0}figcaption{color:#666;font-size:.9em}img{display:block;border-radius:4px}
svg{background:#fff;border:1px solid #ddd;width:100%;height:auto}.key{margin-right:1.2em}.key:before{content:"";
display:inline-block;width:.8em;height:.8em;margin-right:.4em;background:var(--c)}pre{white-space:pre-wrap;margin:0}
"""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the page shows, taken on the event loop so that drawing may happen elsewhere."""

    state: str
    metadata: Mapping[str, Any]
    counters: Mapping[str, float]
    errors: Mapping[str, int]
    recent: Sequence[Answered]
    observation: Mapping[str, Any] | None

    @classmethod
    def of(cls, service: Service) -> "Snapshot":
        """Copy what may change."""
        state = "stopping" if service.is_draining else "ready" if service.is_ready else "warming up"
        counters = {"requests": service.metrics.num_requests, **service.gauges()}
        del counters["ready"]
        errors, recent = dict(service.metrics.num_errors), tuple(service.metrics.recent)
        return cls(state, service.metadata, counters, errors, recent, service.last_observation)


def render(snapshot: Snapshot) -> str:
    """Return the page."""
    title = _text(snapshot.metadata.get("robot", "policy server"))
    colour = "#2e7d32" if snapshot.state == "ready" else "#b26a00"
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH_S}">',
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style></head><body>',
        f'<h1>{title} <span class="state" style="background:{colour}">{_text(snapshot.state)}</span></h1>',
        *_served(snapshot.metadata),
        *_latency(snapshot.recent[-_MAX_BARS:]),
        *_counters(snapshot),
        *_observation(snapshot.observation),
        *_contract(snapshot.metadata),
        "</body></html>",
    ]
    return "\n".join(parts)


def _served(metadata: Mapping[str, Any]) -> Iterator[str]:
    names = {"config": "Config", "checkpoint": "Checkpoint", "step": "Step", "prompt": "Prompt without one"}
    rows = [(label, metadata[key]) for key, label in names.items() if metadata.get(key) is not None]
    if rows:
        yield "<h2>Model</h2>" + _table(rows)


def _latency(recent: Sequence[Answered]) -> Iterator[str]:
    yield "<h2>Latency of the last requests</h2>"
    if not recent:
        yield "<p>No request has been answered yet.</p>"
        return
    totals = np.array([answered.phases_ms["total"] for answered in recent])
    p50, p99 = np.percentile(totals, [50, 99])
    age_s = time.time() - recent[-1].time_s
    yield (
        f"<p>Median {p50:.1f} ms, 99% {p99:.1f} ms, longest {totals.max():.1f} ms of {len(recent)}; "
        f"the last one {age_s:.0f} s ago.</p>"
    )
    yield _bars(recent, scale=_PLOT_HEIGHT / max(float(totals.max()), 1e-3))
    yield "<p>" + "".join(
        f'<span class="key" style="--c:{colour}">{phase}</span>' for phase, colour in _COLOURS.items()
    )
    yield f"Full height is {totals.max():.1f} ms.</p>"


def _bars(recent: Sequence[Answered], scale: float) -> str:
    step = _PLOT_WIDTH / _MAX_BARS
    rectangles = []
    for i, answered in enumerate(recent):
        top = float(_PLOT_HEIGHT)
        for phase, colour in _COLOURS.items():
            height = scale * answered.phases_ms.get(phase, 0.0)
            top -= height
            rectangles.append(
                f'<rect x="{i * step:.1f}" y="{top:.1f}" width="{step - 1:.1f}" height="{height:.1f}" fill="{colour}"/>'
            )
    return (
        f'<svg viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}" role="img" aria-label="latency of each request, by phase">'
        f"{''.join(rectangles)}</svg>"
    )


def _counters(snapshot: Snapshot) -> Iterator[str]:
    yield "<h2>Now</h2>"
    rows = [(name.replace("_", " "), f"{value:g}") for name, value in snapshot.counters.items()]
    rows += [(f"errors: {code.replace('_', ' ')}", count) for code, count in sorted(snapshot.errors.items())]
    yield _table(rows, value_class="n")


def _observation(observation: Mapping[str, Any] | None) -> Iterator[str]:
    if observation is None:
        return
    yield "<h2>Last observation</h2>"
    for name, picture in list(_pictures(observation, ""))[:_MAX_PICTURES]:
        data = base64.b64encode(_jpeg(picture)).decode()
        caption = f"{_text(name)}, {picture.shape[1]} x {picture.shape[0]}"
        yield f'<figure><img src="data:image/jpeg;base64,{data}" alt="{_text(name)}"><figcaption>{caption}</figcaption></figure>'
    rows = []
    for key, value in observation.items():
        if isinstance(value, np.ndarray) and value.ndim <= 1 and value.dtype.kind in "iuf" and value.size <= 64:
            rows.append((key, " ".join(f"{number:.3f}" for number in np.atleast_1d(value).tolist())))
        elif isinstance(value, str):
            rows.append((key, value))
    yield _table(rows)


def _contract(metadata: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Contract</h2>"
    yield _table((key, json.dumps(value, ensure_ascii=False, default=str)) for key, value in metadata.items())


def _pictures(tree: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Find uint8 images [h, w, 3] or [3, h, w] anywhere in an observation."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _pictures(value, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, np.ndarray) and tree.dtype == np.uint8 and tree.ndim == 3 and tree.size:
        if tree.shape[-1] == 3:
            yield path, tree
        elif tree.shape[0] == 3:
            yield path, np.moveaxis(tree, 0, -1)


def _jpeg(picture: np.ndarray) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail(_PICTURE_SIZE_PX)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=80)
        return file.getvalue()


def _table(rows: Any, value_class: str = "") -> str:
    cells = (f'<tr><th>{_text(name)}</th><td class="{value_class}">{_text(value)}</td></tr>' for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _text(value: Any) -> str:
    """Escape what may come from a client or a file."""
    return html.escape(str(value)[:2000])
