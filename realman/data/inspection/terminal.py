"""Print verdict, facts and findings of an inspection."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from realman.data.inspection.summary import LABELS
from realman.data.inspection.summary import facts
from realman.data.inspection.summary import verdict
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "cyan", "good": "bold green"}


def print_summary(survey: Survey, findings: list[Finding], console: Console) -> None:
    """Print the summary to `console`."""
    words, mood = verdict(findings)
    console.print(Text(words, style=_STYLES[mood]))
    console.print(
        Text("; ".join(f"{LABELS.get(key, key)}: {value}" for key, value in facts(survey).items()), style="dim")
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row(Text(finding.grade, style=_STYLES[finding.grade]), Text(finding.found))
        table.add_row("", Text(f"-> {finding.remedy}", style="dim"))
    console.print(table)
