"""Check the patches without a checkout of the original.

The series must be what this tree needs, and must work in a checkout of the original.
"""

import ast
from collections.abc import Iterator
import itertools
import json
import pathlib
import sys

import render

_NAMES_FILE = render.PATCHES_DIR / "upstream_names.json"
"""Modules of the original, their names, and the keywords that each takes (null: not checked)."""

_PACKAGES = {"numpy"}
"""Packages outside the standard library that the added files may use. The original has them all."""

_MAX_CONTEXT = 1
"""Lines of the original that a hunk may quote on either side."""


def find_problems() -> list[str]:
    """Return one line per problem, or none if all is well."""
    try:
        expected = render.render_series()
    except (OSError, render.ToolError) as e:
        return [str(e)]
    problems = list(_compare_with_disk(expected))
    for name, text in expected.items():
        if name.endswith(".patch"):
            problems += _check_hunks(name, text)
    for path in (path for patch in render.SERIES for path in patch.added):
        problems += _check_names(path, render.source_of(path).read_text())
    return problems


def _compare_with_disk(expected: dict[str, str]) -> Iterator[str]:
    """Report files of this folder that differ from what the tree gives."""
    for name, text in expected.items():
        path = render.PATCHES_DIR / name
        if not path.is_file():
            yield f"patches/{name}: missing. Run 'make patches'"
        elif path.read_text() != text:
            yield f"patches/{name}: differs from what the tree gives. Run 'make patches'"
    for path in sorted(render.PATCHES_DIR.glob("*.patch")):
        if path.name not in expected:
            yield f"patches/{path.name}: not in the series. Add it to SERIES in render.py, or remove it"


def _check_hunks(name: str, text: str) -> Iterator[str]:
    """Report a patch without reason, or that removes or quotes lines."""
    header, *_ = text.partition("\n---\n")
    for field in ("Why: ", "Upstream-Status: "):
        if f"\n{field}" not in header:
            yield f"patches/{name}: the header has no '{field.strip()}'"
    for hunk in text.split("\n@@ ")[1:]:
        body = hunk.split("\ndiff --git ")[0].splitlines()[1:]
        kinds = [line[:1] for line in body]
        if "-" in kinds:
            yield f"patches/{name}: a hunk removes lines, expected additions only"
        runs = [(kind, len(list(run))) for kind, run in itertools.groupby(kinds)]
        if max((length for kind, length in runs if kind == " "), default=0) > _MAX_CONTEXT:
            yield f"patches/{name}: a hunk quotes more than {_MAX_CONTEXT} line of the original"


def _check_names(path: str, source: str) -> Iterator[str]:
    """Report names of an added file that the original does not have."""
    names = json.loads(_NAMES_FILE.read_text())
    own = {_module_name(added) for patch in render.SERIES for added in patch.added}
    tree = ast.parse(source)
    modules: dict[str, str] = {}  # Alias in the file -> module.
    # First what the file imports, then what it uses of those modules.
    for node in ast.walk(tree):
        for module, name, alias in _imports(node):
            submodule = f"{module}.{name}" if name else module
            if submodule in names or submodule in own:
                modules[alias] = submodule
            elif module in names and name not in names[module]:
                yield f"{path}:{node.lineno}: '{module}' of the original has no '{name}'"
            elif module not in names and module.split(".")[0] not in {*_PACKAGES, *sys.stdlib_module_names}:
                yield f"{path}:{node.lineno}: imports '{submodule}', which a checkout of the original may not have"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = _module_of(node, modules)
            if module in names and node.attr not in names[module]:
                yield f"{path}:{node.lineno}: '{module}' of the original has no '{node.attr}'"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = names.get(_module_of(node.func, modules), {}).get(node.func.attr)
            given = [keyword.arg for keyword in node.keywords if keyword.arg]
            for unknown in [] if keywords is None else sorted(set(given) - set(keywords)):
                yield f"{path}:{node.lineno}: '{node.func.attr}' of the original takes no '{unknown}'"


def _imports(node: ast.AST) -> Iterator[tuple[str, str | None, str]]:
    """Yield (module, imported name or None, alias) of an import statement."""
    if isinstance(node, ast.Import):
        for imported in node.names:
            yield imported.name, None, imported.asname or imported.name
    elif isinstance(node, ast.ImportFrom):
        for imported in node.names:
            yield node.module or "", imported.name, imported.asname or imported.name


def _module_of(node: ast.Attribute, modules: dict[str, str]) -> str | None:
    """Return the module that has `node` as an attribute, if any."""
    return modules.get(ast.unparse(node.value))


def _module_name(path: str) -> str:
    return ".".join(pathlib.PurePosixPath(path).with_suffix("").parts[1:])
