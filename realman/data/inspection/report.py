"""Render the report as one self-contained HTML page.

Style, charts and images are inside, so the page fetches nothing.
"""

import base64
import html
import importlib.resources
import math
import re

import numpy as np

from realman import spec
from realman.data.inspection import charts
from realman.data.inspection.arm_views import CLEAR_DIFFERENCE
from realman.data.inspection.check_cameras import WRIST_CAMERAS
from realman.data.inspection.check_cameras import find_agreeing
from realman.data.inspection.check_cameras import find_crossed
from realman.data.inspection.check_episodes import prompt_counts
from realman.data.inspection.check_numbers import clipped_shares
from realman.data.inspection.check_numbers import quantiles
from realman.data.inspection.motion import JOINTS
from realman.data.inspection.summary import LABELS
from realman.data.inspection.summary import facts
from realman.data.inspection.summary import verdict
from realman.data.inspection.survey import GRADES
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey

_FLAG = re.compile(r"--[a-z]+(?:[.-][a-z]+)*(?: (?:\w+=\w+|-?\d[\d.]*:[\d.]*\d|[a-z]+(?:_[a-z]+)+|deg\b))*")
"""A flag with the values after it: RECORDED=NAME, a range, names of several words, a unit."""

_MAX_LISTED = 12
_FEW_EPISODES = 20


def render(survey: Survey, findings: list[Finding]) -> str:
    """Return the whole page.

    Args:
        survey: What was measured.
        findings: What the checks found, in order.
    """
    style = importlib.resources.files("realman.data.inspection").joinpath("report.css").read_text(encoding="utf-8")
    name = _text(survey.data.path.resolve().name)
    sections = [_head(survey, findings), _findings(findings)]
    if survey.readable:
        sections += [_contact_sheet(survey), _arm_views(survey), _joints(survey), _ranges(survey), _prompts(survey)]
    sections += [_episodes(survey, findings)]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: inspection</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "<footer>Made by <code>realman inspect</code>. Angles are in deg, grippers are 0..1 with 1 = open, "
        "and the right arm comes first in all files.</footer>\n</main>\n</body>\n</html>\n"
    )


def _head(survey: Survey, findings: list[Finding]) -> str:
    words, mood = verdict(findings)
    tiles = "".join(
        f'<div class="fact"><b>{_text(value)}</b><span>{_text(LABELS.get(key, key))}</span></div>'
        for key, value in facts(survey).items()
    )
    return (
        f"<h1>Inspection of {_text(survey.data.path.resolve().name)}</h1>\n"
        f'<div class="path">{_text(str(survey.data.path.resolve()))}</div>\n'
        f'<div class="verdict bg-{mood}">{_text(words)}</div>\n<div class="facts">{tiles}</div>'
    )


def _findings(findings: list[Finding]) -> str:
    items = []
    for f in findings:
        where = ""
        if f.episodes:
            more = f" and {len(f.episodes) - _MAX_LISTED} more" if len(f.episodes) > _MAX_LISTED else ""
            where = f'<p class="where">{_text(", ".join(f.episodes[:_MAX_LISTED]) + more)}</p>'
        items.append(
            f'<div class="finding {f.grade}"><span class="grade">{f.grade}</span><span class="check">{_text(f.check)}</span>'
            f'<p>{_text(_sentence(f.found))}</p><p class="remedy">{_with_flags(_sentence(f.remedy))}</p>{where}</div>'
        )
    return "<h2>Findings</h2>\n" + ("\n".join(items) or "<p>Nothing to report.</p>")


def _contact_sheet(survey: Survey) -> str:
    sheets = []
    for episode in survey.readable:
        images = episode.images
        if images is None or not images.moments:
            continue
        # A grid with one column per moment and one row per camera.
        cells = [f"<span>{_text(episode.name)}</span>"]
        cells += [f'<span class="time">{t / episode.fps:.1f} s</span>' for t in images.moments]
        for camera, measure in images.cameras.items():
            cells.append(f"<span>{_text(camera)}</span>")
            for t, data in zip(images.moments, measure.thumbnails, strict=True):
                source = base64.b64encode(data).decode()
                cells.append(f'<img src="data:image/jpeg;base64,{source}" alt="{_text(camera)} at frame {t}">')
        style = f"--moments: {len(images.moments)}"
        sheets.append(
            f'<div class="card" style="margin-bottom: 10px"><div class="sheet" style="{style}">{"".join(cells)}</div></div>'
        )
    return (
        "<h2>What the cameras see</h2>\n"
        '<p class="sub">Check that each camera shows what its name says, that left is the robot\'s left, '
        "and that colors look natural. If red things look blue, convert with <code>--color bgr</code>.</p>\n"
        + "\n".join(sheets)
    )


def _arm_views(survey: Survey) -> str:
    rows = []
    crossed, agreeing = find_crossed(survey), find_agreeing(survey)
    own_side = {camera: side for side, camera in WRIST_CAMERAS.items()}
    for camera, view in survey.arm_views.items():
        side = own_side.get(camera)
        # Wrist cameras are judged. Of the others, the report shows from which side they look.
        if side is None:
            half = "right" if view.right_arm_side > 0 else "left"
            words = f"shows the right arm in the {half} half" if abs(view.right_arm_side) > CLEAR_DIFFERENCE else ""
        elif camera in crossed:
            words = '<span class="bad">moves with the other arm</span>'
        elif camera in agreeing:
            words = f'<span class="good">moves with the {side} arm, as it should</span>'
        else:
            words = "unclear, because its arm moves too little or always together with the other one"
        bars = "".join(f"<td>{_share(max(0.0, value), f'{value:.2f}')}</td>" for value in (view.left, view.right))
        rows.append(f"<tr><td>{_text(camera)}</td>{bars}<td>{words}</td></tr>")
    return (
        "<h2>Which camera moves with which arm</h2>\n"
        '<p class="sub">How much of the change in each image follows the motion of each arm (0 none, 1 all). '
        "A wrist camera must follow its own arm.</p>\n"
        '<div class="card"><table><tr><th>camera</th><th>left arm</th><th>right arm</th><th></th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _joints(survey: Survey) -> str:
    note = " The scale is wrong, because the numbers are not radians." if not survey.has_plausible_angles else ""
    return (
        "<h2>Joints over time</h2>\n"
        f'<p class="sub">In color: {_text(charts.highlighted_episode(survey))}'
        '<span class="key" style="border-color: var(--state)"></span>state'
        '<span class="key" style="border-color: var(--action)"></span>action'
        '<span class="key" style="border-color: var(--grid)"></span>states of other episodes'
        f'<span class="key" style="border-top: 2px dashed var(--error)"></span>joint limit, where values come near it.{note}</p>\n'
        f'<div class="card">{charts.joint_chart(survey)}</div>'
    )


def _ranges(survey: Survey) -> str:
    state, ahead, clipped = quantiles(survey.state_rows), quantiles(survey.ahead_rows), clipped_shares(survey)
    rows = []
    # One row per number: a bar of its states within the limits, then the values in display units.
    for dim, name in enumerate(spec.DIM_NAMES):
        scale, digits = (math.degrees(1), 1) if dim in JOINTS else (1.0, 2)
        low, high = survey.state_range[:, dim]
        span = spec.UPPER[dim] - spec.LOWER[dim]
        bars = "".join(
            f'<i class="{kind}" style="left: {100 * left:.1f}%;width: {100 * (right - left):.1f}%"></i>'
            for kind, left, right in (
                ("all", *np.clip((np.array([low, high]) - spec.LOWER[dim]) / span, 0, 1)),
                ("usual", *np.clip((state[:, dim] - spec.LOWER[dim]) / span, 0, 1)),
            )
        )
        numbers = [low, high, *state[:, dim], *ahead[:, dim]]
        cells = "".join(f'<td class="n">{value * scale:.{digits}f}</td>' for value in numbers)
        rows.append(
            f'<tr><td>{_text(name.replace("_", " "))}</td><td class="wide"><div class="bar">{bars}</div></td>{cells}'
            f'<td class="n">{clipped[dim]:.1%}</td></tr>'
        )
    heads = "".join(
        f'<th class="n">{h}</th>' for h in ("min", "max", "q01", "q99", "action q01", "action q99", "clipped")
    )
    basis = "this data" if survey.norm_stats is None else str(survey.norm_stats.path)
    return (
        "<h2>Ranges and normalization</h2>\n"
        '<p class="sub">The bar shows the states within the joint\'s limits: all of them pale, q01 to q99 solid. '
        "Joints are in deg, grippers 0..1. Action is what a policy learns, up to 50 frames ahead, with joints as difference "
        f"from the state. Clipped is the share of states outside q01..q99 of {_text(basis)}, which pi0.5 sees as its "
        "first or last bin (2 % is usual).</p>\n"
        f'<div class="card"><table><tr><th></th><th>within limits</th>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _prompts(survey: Survey) -> str:
    prompts = prompt_counts(survey)
    most = max(prompts.values(), default=1)
    rows = "".join(
        f"<tr><td>{_text(prompt)}</td><td>{_share(count / most, str(count))}</td></tr>"
        for prompt, count in prompts.most_common(_FEW_EPISODES)
    )
    return (
        f'<h2>Prompts</h2>\n<div class="card"><table><tr><th>task text</th><th>episodes</th></tr>{rows}</table></div>'
    )


def _episodes(survey: Survey, findings: list[Finding]) -> str:
    grades = {
        e.name: [g for g in GRADES for f in findings if f.grade == g and e.name in f.episodes] for e in survey.episodes
    }
    rows = []
    # Each episode is marked with its worst grade. A note is not worth a mark.
    for e in survey.episodes:
        worst = grades[e.name][0] if grades[e.name] else ""
        mark = f'<td class="{"bad" if worst == "error" else ""}">{worst if worst != "note" else ""}</td>'
        lag = e.motion.lag_s if e.motion is not None else None
        cells = [f"{e.num_frames}", f"{e.seconds:.1f}", "" if lag is None else f"{lag * 1000:.0f}"]
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows.append(f"<tr><td>{_text(e.name)}</td>{numbers}<td>{_text(e.task or '')}</td>{mark}</tr>")
    table = (
        '<table><tr><th>episode</th><th class="n">frames</th><th class="n">s</th><th class="n">lag, ms</th>'
        f"<th>prompt</th><th></th></tr>{''.join(rows)}</table>"
    )
    is_open = " open" if len(rows) <= _FEW_EPISODES else ""
    chart = f'<div class="card">{charts.length_chart(survey)}</div>\n' if survey.readable else ""
    return (
        f"<h2>Episodes</h2>\n{chart}"
        f'<details{is_open} style="margin-top: 10px"><summary>All {len(rows)} episodes</summary><div class="card">{table}</div></details>'
    )


def _share(share: float, label: str) -> str:
    return f'<span class="share"><i style="width: {100 * min(share, 1.0):.0f}%"></i></span>{_text(label)}'


def _sentence(text: str) -> str:
    """Return the text with a capital and a full stop.

    A name such as `cam_low` at the start stays as it is.
    """
    first = text.partition(" ")[0]
    start = text[:1] if "_" in first else text[:1].upper()
    return start + text[1:] + ("" if text.endswith(".") else ".")


def _with_flags(text: str) -> str:
    """Return the text as HTML, with flags set as code to copy."""
    return _FLAG.sub(r"<code>\g<0></code>", _text(text))


def _text(value: str) -> str:
    return html.escape(value)
