"""Define the patches and render their text.

The text is made from the files of this tree, so that there is only one place to edit. The series adds files and one
registration to the original. The original's `config.py` differs from ours, so the registration is an insertion that
quotes one line of the original, and is found by that line anywhere in the file.
"""

import dataclasses
import hashlib
import pathlib

PATCHES_DIR = pathlib.Path(__file__).resolve().parent
TREE_DIR = PATCHES_DIR.parent / "third_party" / "openpi"
ADDED_DIR = PATCHES_DIR / "added"
"""Files that only the original needs. Our registry has no need of them."""

POLICY_FILE = "src/openpi/policies/realman_policy.py"
CONFIGS_FILE = "src/openpi/training/misc/realman_config.py"
ORDER_FILE = "src/openpi/training/misc/__init__.py"
REGISTRY_FILE = "src/openpi/training/config.py"

REGISTRATION = (
    "# Imported down here because that module imports this one: by now every name it needs exists.",
    "import openpi.training.misc.realman_config as _realman_config  # noqa: E402",
    "",
    "_CONFIGS.extend(_realman_config.get_realman_configs())",
    "",
)
"""The lines that register the configs in the original's list."""

CONTEXT_LINE = "if len({config.name for config in _CONFIGS}) != len(_CONFIGS):"
"""The original's check that names are unique: the last place where a config can still be added."""

_LINE_NUMBER = 972
"""Of the blank line above that check at the base revision: a hint, the context decides."""

_HEADER = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: realman-openpi maintainers <maintainers@realman-openpi.invalid>
Date: Mon, 23 Nov 2026 00:00:00 +0000
Subject: [PATCH] {subject}

Why: {why}
Upstream-Status: {status}
---
"""


class ToolError(Exception):
    """A problem that you can fix, with a message that says how."""


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch of the series."""

    name: str
    subject: str
    # The reason for the patch, in one or more lines. Each line after the first begins with a space.
    why: str
    # Files that it adds, paths from the root of a checkout.
    added: tuple[str, ...]
    # Whether it registers the configs.
    registers: bool = False
    status: str = "not-forwarded (specific to one robot)"

    def render(self) -> str:
        """Return the text of the patch file."""
        parts = [_HEADER.format(subject=self.subject, why=self.why, status=self.status)]
        parts += [_render_added(path, source_of(path).read_text()) for path in self.added]
        if self.registers:
            parts.append(_render_insertion(REGISTRY_FILE, REGISTRATION))
        return "".join(parts)


SERIES = (
    Patch(
        name="realman-policy.patch",
        subject="policies: read and drive the RealMan dual arm",
        why="a policy needs to know the robot's 14 numbers, the order of its arms and its cameras.",
        added=(POLICY_FILE,),
    ),
    Patch(
        name="realman-configs.patch",
        subject="training: register the configs of the RealMan dual arm",
        why="scripts/train.py, compute_norm_stats.py and serve_policy.py find configs in this list only.",
        added=(ORDER_FILE, CONFIGS_FILE),
        registers=True,
    ),
)


def source_of(path: str) -> pathlib.Path:
    """Return the file of this tree that a patch adds at `path`."""
    patch_only = ADDED_DIR / path
    return patch_only if patch_only.is_file() else TREE_DIR / path


def render_series() -> dict[str, str]:
    """Return the text of each generated file of this folder by name."""
    names = "".join(f"{patch.name}  # {patch.subject}\n" for patch in SERIES)
    return {"series": names, **{patch.name: patch.render() for patch in SERIES}}


def _render_added(path: str, text: str) -> str:
    if not text.endswith("\n"):
        raise ToolError(f"{path}: found no newline at its end. Add one")
    content = text.encode()
    # Git's name of the content. `git am --3way` needs it.
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    lines = text[:-1].split("\n")
    head = [
        f"diff --git a/{path} b/{path}",
        "new file mode 100644",
        f"index {'0' * 40}..{blob}",
        "--- /dev/null",
        f"+++ b/{path}",
        f"@@ -0,0 +1,{len(lines)} @@",
    ]
    return "".join(f"{line}\n" for line in [*head, *(f"+{line}" for line in lines)])


def _render_insertion(path: str, inserted: tuple[str, ...]) -> str:
    # A blank line above and the quoted line below: context on both sides, because GNU patch takes a hunk with context on
    # one side only for the beginning or the end of a file.
    lines = [
        f"diff --git a/{path} b/{path}",
        f"--- a/{path}",
        f"+++ b/{path}",
        f"@@ -{_LINE_NUMBER},2 +{_LINE_NUMBER},{2 + len(inserted)} @@",
        " ",
        *(f"+{line}" for line in inserted),
        f" {CONTEXT_LINE}",
    ]
    return "".join(f"{line}\n" for line in lines)
