"""Apply the series to a checkout of the original, and reverse it."""

import os
import pathlib
import subprocess

import render
from render import ToolError

_EXPECTED_FILES = ("src/openpi/transforms.py", "src/openpi/models/model.py", render.REGISTRY_FILE)


def apply(checkout: pathlib.Path) -> str:
    """Apply the series.

    Args:
        checkout: Root folder of a checkout of the original: a repository of its own, a copy inside another one, or a
            plain folder.

    Returns:
        What was done.

    Raises:
        ToolError: It cannot be applied. Nothing has been changed.
    """
    root = _resolve(checkout)
    if _accepts(root, "--reverse"):
        return f"{root}: already applied"
    changed = _changed_files(root)
    if changed:
        raise ToolError(
            f"{root}: found local changes in {len(changed)} tracked file(s), the first is {changed[0]}. "
            "Commit or stash them"
        )
    result = _git_apply(root)
    if result.returncode != 0:
        base = (render.PATCHES_DIR / "BASE").read_text().split()[0]
        raise ToolError(
            f"{root}: the series (made for revision {base}) does not fit, nothing was changed: "
            f"{_one_line(result.stderr)}"
        )
    _verify(root)
    return f"{root}: applied, {_list_files()}; undo with 'python patches/tool.py reverse {root}'"


def reverse(checkout: pathlib.Path) -> str:
    """Take the series out again, so that the checkout is as before.

    Returns:
        What was done.

    Raises:
        ToolError: Its files have been edited since it was applied. Nothing has been changed.
    """
    root = _resolve(checkout)
    result = _git_apply(root, "--reverse")
    if result.returncode == 0:
        return f"{root}: reversed, {_list_files()}"
    if _accepts(root):
        return f"{root}: not applied, nothing to reverse"
    raise ToolError(
        f"{root}: the series is not there as it was applied, nothing was changed: {_one_line(result.stderr)}. "
        f"Undo the edits of these files first: {_list_files()}"
    )


def _resolve(checkout: pathlib.Path) -> pathlib.Path:
    """Return the absolute root of a checkout, if it can be one."""
    root = checkout.expanduser().resolve()
    if not root.is_dir():
        raise ToolError(f"{root}: no such folder, expected a checkout of openpi")
    if root == render.TREE_DIR.resolve():
        raise ToolError(
            f"{root}: found this project's own framework, which has these files. Expected a checkout of the original"
        )
    missing = [name for name in _EXPECTED_FILES if not (root / name).is_file()]
    if missing:
        raise ToolError(f"{root}: not the root of an openpi checkout, {', '.join(missing)} not found")
    return root


def _changed_files(root: pathlib.Path) -> list[str]:
    """Return the tracked files below `root` with uncommitted changes.

    There are none if nothing is tracked.
    """
    result = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".")
    if result.returncode != 0 and "not a git repository" not in result.stderr:
        raise ToolError(f"{root}: git does not say whether it is clean: {_one_line(result.stderr)}")
    return [line[3:] for line in result.stdout.splitlines()]


def _accepts(root: pathlib.Path, *options: str) -> bool:
    return _git_apply(root, "--check", *options).returncode == 0


def _git_apply(root: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `git apply` on the series: all of it or nothing.

    The patches are passed as one text. If they were several files, the first ones would stay applied when a later one
    does not fit. The search for a repository ends at `root`. Otherwise, in a folder inside another repository, `git
    apply` would treat the paths as that repository's, change nothing, and report success.
    """
    series = "".join((render.PATCHES_DIR / patch.name).read_text() for patch in render.SERIES)
    return _git(root, "apply", "--whitespace=nowarn", *options, GIT_CEILING_DIRECTORIES=str(root.parent), text=series)


def _git(root: pathlib.Path, *arguments: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    # Git sets these variables inside a hook of another repository, for example, and would then work on that one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"LC_ALL": "C", **variables}
    command = ["git", "-c", "core.autocrlf=false", *arguments]
    try:
        return subprocess.run(
            command, cwd=root, env=environment, input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as e:
        raise ToolError("git: not found. Install it") from e


def _verify(root: pathlib.Path) -> None:
    """Check that the patches have really arrived."""
    wrong = [
        path
        for patch in render.SERIES
        for path in patch.added
        if not (root / path).is_file() or (root / path).read_bytes() != render.source_of(path).read_bytes()
    ]
    registration = "\n".join([*render.REGISTRATION, render.CONTEXT_LINE])
    registered = registration in (root / render.REGISTRY_FILE).read_text()
    if wrong or not registered:
        raise ToolError(
            f"{root}: git reports success, but {wrong or render.REGISTRY_FILE} is not as expected. Check the folder"
        )


def _list_files() -> str:
    added = [path for patch in render.SERIES for path in patch.added]
    return ", ".join([*added, render.REGISTRY_FILE])


def _one_line(text: str) -> str:
    return "; ".join(text.split("\n")).strip("; ")
