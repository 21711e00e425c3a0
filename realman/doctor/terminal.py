"""The inspection in a terminal: verdict, facts and findings."""

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from realman.doctor.summary import facts
from realman.doctor.summary import verdict
from realman.doctor.survey import Finding
from realman.doctor.survey import Survey

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "cyan", "good": "bold green"}


def print_summary(survey: Survey, findings: list[Finding], console: Console) -> None:
    """Write the summary to `console`."""
    words, mood = verdict(findings)
    console.print(Text(words, style=_STYLES[mood]))
    console.print(Text("; ".join(f"{label}: {value}" for label, value in facts(survey).items()), style="dim"))
    for finding in findings:
        line = Text.assemble((f"{finding.grade:8}", _STYLES[finding.grade]), finding.found)
        console.print(Padding(line, (1 if finding.grade != "note" else 0, 0, 0, 0)))
        console.print(Padding(Text(f"-> {finding.remedy}"), (0, 0, 0, 8)))
