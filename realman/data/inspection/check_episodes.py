"""Check that episodes are readable, not odd in length, and have prompts."""

from collections import Counter
from collections.abc import Iterator
import re

import numpy as np

from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey
from realman.data.inspection.survey import counted
from realman.data.inspection.survey import some

_SHORT, _LONG = 0.4, 2.5
"""Fractions of the median length beyond which an episode is probably an accident."""

_HORIZON_FRAMES = 50
"""Action horizon of all RealMan configs. Shorter episodes are mostly padding."""

_MIN_FOR_OUTLIERS = 5


def check_readable(survey: Survey) -> Iterator[Finding]:
    """Find episodes that cannot be read."""
    for episode in survey.episodes:
        if episode.problem is not None:
            remedy = "record it again, or leave it out with --skip-bad" if survey.is_raw else "copy or convert it again"
            yield Finding("error", "unreadable", episode.problem, remedy, (episode.name,))


def check_lengths(survey: Survey) -> Iterator[Finding]:
    """Find episodes that are much shorter or longer than the others."""
    lengths = {e.name: e.seconds for e in survey.readable}
    if len(lengths) >= _MIN_FOR_OUTLIERS:
        usual = float(np.median(list(lengths.values())))
        odd = {n: s for n, s in lengths.items() if not _SHORT * usual <= s <= _LONG * usual}
        if odd:
            listed = some(f"{n} {s:.1f} s" for n, s in odd.items())
            text = f"the median episode lasts {usual:.1f} s, but {listed}"
            remedy = (
                "watch them for false starts or a recorder that was left running, and choose episodes with --episodes"
            )
            yield Finding("warning", "length", text, remedy, tuple(odd))
    # Padding is judged without the others, so a single short episode counts as well.
    brief = [e.name for e in survey.readable if e.num_frames < _HORIZON_FRAMES]
    if brief:
        number = counted(len(brief), "episode")
        text = f"{number} shorter than the {_HORIZON_FRAMES} frames that a policy predicts: {some(brief)}"
        yield Finding(
            "note",
            "length",
            text,
            "training repeats the last action to fill the horizon, so record whole motions",
            tuple(brief),
        )


def check_prompts(survey: Survey) -> Iterator[Finding]:
    """Check that task texts exist, are spelled alike, and differ."""
    without = [e.name for e in survey.readable if not (e.task or "").strip()]
    if without:
        text = f"{counted(len(without), 'episode')} without a task text: {some(without)}"
        remedy = survey.convert_with("--task 'what the robot does', or --task-file for a text per recording")
        yield Finding("error" if survey.is_raw else "warning", "prompt", text, remedy, tuple(without))
    # Texts that differ only in case, spaces or punctuation are the same task.
    prompts = prompt_counts(survey)
    spellings: dict[str, list[str]] = {}
    for prompt in prompts:
        spellings.setdefault(re.sub(r"[\W_]+", " ", prompt).strip().casefold(), []).append(prompt)
    for texts in spellings.values():
        if len(texts) > 1:
            text = f"one task is spelled in {len(texts)} ways: {some((repr(t) for t in texts), 4)}"
            yield Finding("warning", "prompt", text, survey.convert_with("--task-file and a single spelling"))
    if len(prompts) == 1:
        text = f"all episodes have the same prompt, '{next(iter(prompts))}'"
        remedy = "fine for a single task. The policy will ignore its prompt, so record other tasks if it should not"
        yield Finding("note", "prompt", text, remedy)


def prompt_counts(survey: Survey) -> Counter[str]:
    """Return the number of episodes of each task text."""
    return Counter(e.task.strip() for e in survey.readable if e.task and e.task.strip())


def check_dataset_order(survey: Survey) -> Iterator[Finding]:
    """Find a dataset that has the left arm first."""
    dataset = survey.data.dataset
    if dataset is not None and dataset.is_left_first:
        text = "the names in info.json list the left arm first (this report shows the right arm first)"
        yield Finding(
            "warning", "arm-order", text, "train with --data.arm-order left_right, and serve with the same config"
        )
