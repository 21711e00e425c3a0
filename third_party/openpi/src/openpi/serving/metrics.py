"""Counters of a policy server, for Prometheus and for its status page.

They are used from the event loop only.
"""

import bisect
import collections
from collections.abc import Iterator, Mapping
import dataclasses
import itertools
import time

PHASES = ("queue", "preprocess", "model", "postprocess", "total")
"""Parts of the time between a request and its reply. `total` is all the time spent on the server."""

# Upper bounds, s. They range from a copy of one image to a compilation.
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)

_NUM_RECENT = 300


@dataclasses.dataclass(frozen=True)
class Answered:
    """One answered request."""

    time_s: float  # Unix time
    phases_ms: Mapping[str, float]


class Histogram:
    """Counts durations in fixed buckets."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect.bisect_left(_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yield the samples in Prometheus' text format."""
        bounds = (*map(str, _BUCKETS_S), "+Inf")
        for bound, count in zip(bounds, itertools.accumulate(self._counts), strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{name}_sum{{{labels}}} {self._sum_s:.6f}"
        yield f"{name}_count{{{labels}}} {sum(self._counts)}"


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_connections = 0
        """Connections since the start."""
        self.num_batched = 0
        """Requests answered together with others."""
        self.num_notices = 0
        """Oddities of clients that were reported."""
        self.num_errors: collections.Counter[str] = collections.Counter()
        """Requests answered with an error, by error code."""
        self.recent: collections.deque[Answered] = collections.deque(maxlen=_NUM_RECENT)
        """The latest answered requests, oldest first."""
        self._histograms = {phase: Histogram() for phase in PHASES}

    def count_answer(self, phases_ms: Mapping[str, float], *, batch_size: int = 1) -> None:
        """Count a request that was answered with actions.

        Args:
            phases_ms: Duration of some or all of `PHASES`.
            batch_size: Requests answered by the same call.
        """
        self.recent.append(Answered(time.time(), dict(phases_ms)))
        self.num_batched += batch_size > 1
        for phase, duration_ms in phases_ms.items():
            self._histograms[phase].add(duration_ms / 1000)

    def prometheus(self, gauges: Mapping[str, float]) -> str:
        """Return everything in Prometheus' text format (version 0.0.4).

        Args:
            gauges: Current values, by name.
        """
        # Counters first, then gauges, then the histograms.
        lines = [
            *_metric("openpi_requests_total", "counter", "Requests received.", [("", self.num_requests)]),
            *_metric("openpi_connections_total", "counter", "Connections made.", [("", self.num_connections)]),
            *_metric(
                "openpi_batched_requests_total", "counter", "Requests that shared a call.", [("", self.num_batched)]
            ),
            *_metric("openpi_notices_total", "counter", "Oddities of clients reported.", [("", self.num_notices)]),
            *_metric(
                "openpi_errors_total",
                "counter",
                "Requests answered with an error.",
                [(f'{{code="{code}"}}', count) for code, count in sorted(self.num_errors.items())],
            ),
        ]
        for name, value in gauges.items():
            lines += _metric(f"openpi_{name}", "gauge", name.replace("_", " ").capitalize() + ".", [("", value)])
        lines += _header("openpi_phase_seconds", "histogram", "Time of an answered request, by phase.")
        for phase, histogram in self._histograms.items():
            lines += histogram.lines("openpi_phase_seconds", f'phase="{phase}"')
        return "\n".join(lines) + "\n"


def _header(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _metric(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> list[str]:
    return _header(name, kind, text) + [f"{name}{labels} {value}" for labels, value in samples]
