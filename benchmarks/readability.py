"""Measure how readable the tree is: rooms, arrows, English, remarks, types.

    python benchmarks/readability.py                      # this tree
    python benchmarks/readability.py --before v0.1.0      # next to an older one
    python benchmarks/readability.py --list realman/data  # every place to fix below a folder

`tests/test_language.py` holds the same measures against their limits.
"""

from collections.abc import Callable
import dataclasses
import io
from pathlib import Path
import subprocess
import sys
import tarfile
import tempfile

import rich.console
import rich.table
import tyro

from benchmarks import prose
from benchmarks import structure

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    before: str | None = None
    """A revision of this repository to show in a column of its own."""
    list: Path | None = None
    """List every finding below this folder or file instead of the table."""


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.0f} %)"


ROWS: dict[str, Callable[[Path], str]] = {
    "entries at the top of realman/": lambda root: str(len(structure.entries(root / "realman"))),
    "files at the top of openpi/training/": lambda root: str(
        len([e for e in structure.entries(root / structure.OPENPI / "training") if e.endswith(".py")])
    ),
    "arrows between rooms of realman/": lambda root: str(len(structure.arrows(root / "realman", "realman"))),
    "arrows between rooms of openpi/training/": lambda root: str(
        len(structure.arrows(root / structure.OPENPI / "training", "openpi.training"))
    ),
    "banned phrases": lambda root: str(len(prose.banned_phrases(root))),
    "semicolons in prose": lambda root: str(len(prose.semicolons(root))),
    "semicolons per 100 sentences of the documents": lambda root: f"{prose.semicolons_per_100_sentences(root):.1f}",
    "sentences of the documents with 'you'": lambda root: _share(*prose.sentences_with_you(root)),
    "docstring first lines with a semicolon": lambda root: _share(*prose.first_lines(root, prose.has_semicolon)),
    "docstring first lines over 12 words": lambda root: _share(*prose.first_lines(root, prose.is_long)),
    "bodies over 20 lines without a remark": lambda root: _share(*structure.bare_bodies(root)),
    "modules under strict mypy": lambda root: _share(*structure.typed_modules(root)),
}


def _unpack(revision: str, folder: Path) -> Path:
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main(args: Args) -> int:
    """Print the table, or the list of findings."""
    if args.list is not None:
        below = args.list.resolve().relative_to(ROOT).as_posix().removeprefix(".")
        findings = sorted([*prose.findings(ROOT, below), *structure.findings(ROOT, below)])
        print("\n".join(findings))
        return 1 if findings else 0
    table = rich.table.Table()
    table.add_column("measure")
    with tempfile.TemporaryDirectory() as folder:
        trees = [("now", ROOT)]
        if args.before:
            trees.insert(0, (args.before, _unpack(args.before, Path(folder))))
        for name, _ in trees:
            table.add_column(name, justify="right")
        for row, measure in ROWS.items():
            table.add_row(row, *(measure(tree) for _, tree in trees))
    rich.console.Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
