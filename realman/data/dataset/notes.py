"""Say what a conversion assumes, replaces and leaves out."""

from collections.abc import Collection, Sequence
import logging

from realman.data.checks import EpisodeFacts
from realman.data.checks import Extra
from realman.data.raw.episode import EFFORT
from realman.data.raw.episode import QVEL

logger = logging.getLogger(__name__)

_MOST_NAMED = 5


def report_assumptions(facts: Sequence[EpisodeFacts], extras: Collection[Extra] | None) -> None:
    """Log what is assumed, replaced and left out.

    Args:
        facts: All sound recordings, at least one.
        extras: Numbers that were asked for in addition to state and action, or None.
    """
    if not facts[0].has_fps:
        logger.warning(
            "no recording states its frame rate: %d frames per second assumed. Give another with --fps", facts[0].fps
        )
    for note in dict.fromkeys(note for f in facts for note in f.notes):
        names = [f.name for f in facts if note in f.notes]
        logger.warning("%s: %s", _some(names), note)
    others = sorted({camera for f in facts for camera in f.other_cameras})
    if others:
        logger.warning("cameras recorded but not converted: %s. Choose with --cameras", ", ".join(others))
    reasons = {place: reason for f in facts for place, reason in f.left_out if place not in (QVEL, EFFORT)}
    if reasons:
        logger.warning("recorded but not converted: %s", _some([*reasons.values()], "; "))
    if extras is None:
        _report_extra("velocity", QVEL, facts, [f for f in facts if not f.has_velocity])
        _report_extra("effort", EFFORT, facts, [f for f in facts if not f.has_effort])


def _report_extra(extra: Extra, place: str, facts: Sequence[EpisodeFacts], lacking: Sequence[EpisodeFacts]) -> None:
    """Say why numbers are left out that some recordings have."""
    reasons = {f.name: dict(f.left_out).get(place) for f in lacking}
    if not lacking or (len(lacking) == len(facts) and not any(reasons.values())):
        return
    name = next((name for name, reason in reasons.items() if reason), lacking[0].name)
    logger.warning(
        "'%s' is left out, because %s in %s (%d of %d recordings). Insist on it with --extras %s",
        place,
        reasons[name] or "it is missing",
        name,
        len(lacking),
        len(facts),
        extra,
    )


def _some(texts: Sequence[str], joint: str = ", ") -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return joint.join(texts[:_MOST_NAMED]) + more
