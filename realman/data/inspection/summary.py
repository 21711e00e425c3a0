"""Summarize the inspection: a verdict, a few facts, and everything as JSON."""

import collections
import dataclasses
from typing import Any, Literal

from realman import spec
from realman.data.inspection.check_episodes import prompt_counts
from realman.data.inspection.check_numbers import clipped_shares
from realman.data.inspection.check_numbers import quantiles
from realman.data.inspection.survey import GRADES
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey
from realman.data.inspection.survey import counted

LABELS = {"in all": "total length", "length of episodes": "episode length", "pictures": "image size"}
"""What people read instead of some keys of `facts`, which stay as they are for scripts that read report.json."""


def verdict(findings: list[Finding]) -> tuple[str, Literal["good", "warning", "error"]]:
    """Return the verdict in one line, and its mood."""
    counts = collections.Counter(f.grade for f in findings)
    listed = [counted(counts[grade], grade) for grade in GRADES if counts[grade]]
    if counts["error"]:
        return f"Not fit for training: {', '.join(listed)}", "error"
    if counts["warning"]:
        return f"Check before training: {', '.join(listed)}", "warning"
    return "Fit for training" + (f" ({', '.join(listed)})" if listed else ""), "good"


def facts(survey: Survey) -> dict[str, str]:
    """Return a few facts by their JSON key.

    `LABELS` has better words for some keys.
    """
    readable = survey.readable
    seconds = [e.seconds for e in readable]
    rates = sorted({e.fps for e in readable})
    cameras = list(dict.fromkeys(c for p in survey.images.values() for c in p.cameras))
    sizes = sorted({m.size for p in survey.images.values() for m in p.cameras.values()})
    lag = "unknown" if survey.lag_s is None else f"{survey.lag_s * 1000:.0f} ms"
    return {
        "recordings" if survey.is_raw else "episodes (LeRobot)": str(len(survey.episodes)),
        "in all": f"{sum(seconds) / 60:.1f} min",
        "frames": f"{sum(e.num_frames for e in readable):,}",
        "frames per second": ", ".join(f"{r:g}" for r in rates) or "unknown",
        "length of episodes": f"{min(seconds, default=0):.1f}..{max(seconds, default=0):.1f} s",
        "prompts": str(len(prompt_counts(survey))),
        "cameras": f"{len(cameras)}",
        "pictures": ", ".join(f"{w}x{h}" for h, w in sizes) or "none",
        "state follows action by": lag,
    }


def as_json(survey: Survey, findings: list[Finding]) -> dict[str, Any]:
    """Return everything that a script may want, as plain JSON types.

    That is verdict, findings, facts, and the numbers of each dimension, camera and episode.
    """
    return {
        "data": str(survey.data.path.resolve()),
        "verdict": verdict(findings)[0],
        "findings": [dataclasses.asdict(f) for f in findings],
        "facts": facts(survey),
        "prompts": dict(prompt_counts(survey)),
        "dimensions": _dimensions(survey) if survey.readable else [],
        "cameras": {name: dataclasses.asdict(view) for name, view in survey.arm_views.items()},
        "episodes": [
            {
                "name": e.name,
                "num_frames": e.num_frames,
                "fps": e.fps,
                "task": e.task,
                "problem": e.problem or e.refusal,
                "lag_s": e.motion.lag_s if e.motion is not None else None,
            }
            for e in survey.episodes
        ],
    }


def _dimensions(survey: Survey) -> list[dict[str, Any]]:
    state, clipped = quantiles(survey.state_rows), clipped_shares(survey)
    columns = {
        "min": survey.state_range[0],
        "max": survey.state_range[1],
        "q01": state[0],
        "q99": state[1],
        "action_min": survey.action_range[0],
        "action_max": survey.action_range[1],
        "clipped_share": clipped,
    }
    # Rounded so that the same data gives the same text on every machine.
    return [
        {"name": name, **{key: round(float(values[dim]), 6) for key, values in columns.items()}}
        for dim, name in enumerate(spec.DIM_NAMES)
    ]
