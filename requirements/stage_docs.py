"""Copy the documents into build/docs, as they lie in the tree, with every file that they link to."""

from pathlib import Path
import re
import shutil
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build/docs"
SKIPPED = (".github/", "third_party/openpi/src/")

_LINK = re.compile(r"(?<!`)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(#[^)\s]*)?\)")


def main() -> None:
    """Stage every document, and exit with a list of links that lead nowhere."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = [name for name in listing.stdout.splitlines() if not name.startswith(SKIPPED) and (ROOT / name).is_file()]
    shutil.rmtree(STAGE, ignore_errors=True)
    broken = [f"{name}: no '{target}'" for name in names for target in _stage(name)]
    if broken:
        sys.exit("documents: links that lead nowhere\n" + "\n".join(broken))


def _stage(name: str) -> list[str]:
    """Copy one document and what it links to. Returns the targets that do not exist."""
    text, missing = (ROOT / name).read_text(encoding="utf-8"), []

    def resolve(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match.group()
        file = (ROOT / name).parent / target
        if not file.exists():
            missing.append(target)
        elif file.is_dir():
            # The site has no page for a folder of code.
            return match["text"]
        elif file.suffix != ".md":
            _copy(file)
        return match.group()

    staged = STAGE / name
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_text(_LINK.sub(resolve, text), encoding="utf-8")
    return missing


def _copy(file: Path) -> None:
    target = STAGE / file.resolve().relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


if __name__ == "__main__":
    main()
