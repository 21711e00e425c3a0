"""Run all checks and order their findings by weight."""

from collections.abc import Callable, Iterator

from realman.data.inspection import check_cameras
from realman.data.inspection import check_episodes
from realman.data.inspection import check_motion
from realman.data.inspection import check_numbers
from realman.data.inspection.survey import GRADES
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey

CHECKS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    check_episodes.check_readable,
    check_numbers.check_finite,
    check_numbers.check_angles,
    check_numbers.check_grippers,
    check_episodes.check_dataset_order,
    check_motion.check_action_meaning,
    check_cameras.check_wrists,
    check_cameras.check_presence,
    check_cameras.check_frozen,
    check_cameras.check_blank,
    check_numbers.check_constant,
    check_motion.check_rate,
    check_motion.check_lag,
    check_motion.check_spikes,
    check_motion.check_rest,
    check_episodes.check_lengths,
    check_episodes.check_prompts,
    check_numbers.check_spread,
    check_numbers.check_clipped,
)


def diagnose(survey: Survey) -> list[Finding]:
    """Run all checks and return errors first, then warnings, then notes."""
    checks = CHECKS if survey.readable else (check_episodes.check_readable,)
    findings = [finding for check in checks for finding in check(survey)]
    # Add what only the converter's own checks found. A refusal that an error already explains would be reported twice.
    errors = [f for f in findings if f.grade == "error"]
    explained = {name for f in errors for name in (f.episodes or [e.name for e in survey.episodes])}
    findings += [
        Finding("error", "converter", e.refusal, "fix the recording, or leave it out with --skip-bad", (e.name,))
        for e in survey.readable
        if e.refusal is not None and e.name not in explained
    ]
    return sorted(findings, key=lambda f: GRADES.index(f.grade))
