"""Measure the structure of the tree.

Entries of a folder, arrows between rooms, bodies without a remark, modules under strict types.
"""

import ast
from collections.abc import Iterator
import io
from pathlib import Path
import tokenize

import tomllib

OPENPI = "third_party/openpi/src/openpi"
CLIENT = "third_party/openpi/packages/openpi-client/src/openpi_client"
LONG_BODY = 20


def entries(folder: Path) -> list[str]:
    """Return what a reader of a folder chooses from."""
    names = [p.name for p in folder.iterdir() if p.is_dir() or p.suffix == ".py"]
    return sorted(name for name in names if not name.startswith(("_", ".")))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(folder: Path, package: str) -> set[tuple[str, str]]:
    """Return (importer, imported) for the top entries of a package."""
    found = set()
    for path in folder.rglob("*.py"):
        source = path.relative_to(folder).parts[0].removesuffix(".py")
        for module in _imports(path):
            if module.startswith(package + "."):
                target = module.removeprefix(package + ".").split(".")[0]
                is_room = (folder / target).is_dir() or (folder / f"{target}.py").is_file()
                if is_room and target != source and not source.startswith("__"):
                    found.add((source, target))
    return found


def _bodies(root: Path, below: str = "") -> Iterator[tuple[str, int, str, bool]]:
    """Yield (file, line, name, has a remark) of each long body."""
    for folder in ("realman", OPENPI, CLIENT, "third_party/openpi/scripts", "examples"):
        for path in sorted((root / folder).rglob("*.py")):
            if not path.relative_to(root).as_posix().startswith(below):
                continue
            source = path.read_text(encoding="utf-8")
            tokens = tokenize.generate_tokens(io.StringIO(source).readline)
            remarks = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    body = node.body[1:] if ast.get_docstring(node) else node.body
                    if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > LONG_BODY:
                        span = range(node.body[0].lineno, (body[-1].end_lineno or 0) + 1)
                        yield path.relative_to(root).as_posix(), node.lineno, node.name, bool(remarks & set(span))


def bare_bodies(root: Path) -> tuple[int, int]:
    """Count the long bodies without a remark, and all long bodies."""
    bodies = list(_bodies(root))
    return sum(not has_remark for *_, has_remark in bodies), len(bodies)


def typed_modules(root: Path) -> tuple[int, int]:
    """Count the modules that strict mypy checks, and all modules."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    named = [*settings.get("packages", []), *settings.get("files", [])]
    homes = {"realman": root / "realman", "openpi": root / OPENPI, "openpi_client": root / CLIENT}
    all_modules = {path for home in homes.values() for path in home.rglob("*.py")}
    checked = set()
    for name in named:
        top, *rest = name.split(".")
        home = homes[top].joinpath(*rest) if top in homes else root / name
        checked |= set(home.rglob("*.py")) if home.is_dir() else {home.with_suffix(".py")}
    return len(checked & all_modules), len(all_modules)


def findings(root: Path, below: str = "") -> Iterator[str]:
    """Every body over 20 lines without a remark."""
    for file, line, name, has_remark in _bodies(root, below):
        if not has_remark:
            yield f"{file}:{line}: {name} has over {LONG_BODY} lines and no remark"
