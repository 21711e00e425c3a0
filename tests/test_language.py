"""The tree stays readable: plain English, short first lines, remarks in long bodies. The limits may only fall."""

import re

import pytest

from benchmarks import prose
from benchmarks import structure

MAX_BARE_SHARE = 0.20
"""Bodies over 20 lines that may do without a remark, as a share of such bodies."""


@pytest.fixture(scope="module")
def findings(repo_root):
    """Every place to fix, read once."""
    return list(prose.findings(repo_root))


@pytest.mark.parametrize("kind", ["; write: ", ": semicolon in a ", ": first line of the docstring "])
def test_no_banned_phrase_no_semicolon_chain_and_no_long_first_line(kind, findings):
    assert [line for line in findings if kind in line] == []


def test_long_bodies_name_their_steps(repo_root):
    bare, long = structure.bare_bodies(repo_root)
    assert long > 20
    assert bare / long < MAX_BARE_SHARE


def test_the_documents_talk_to_you(repo_root):
    with_you, sentences = prose.sentences_with_you(repo_root)
    assert with_you / sentences > 0.05


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("the arms go on after a pause", True),
        ("read the frame beside it", True),
        ("this is no JPEG", True),
        ("there is no JPEG", False),
        ("it is no longer there", False),
        ("one a line", True),
        ("one per line", False),
        ("two images a second are drawn", False),
        ("mending", True),
        ("commend", False),
        ("tell apart", True),
        ("optimised colours", True),
        ("OpenCV reads an image", False),
    ],
)
def test_the_measure_finds_what_it_should(text, is_found, tmp_path):
    (tmp_path / "a.md").write_text(f"A sentence.\n{text}\n")
    found = prose.banned_phrases(tmp_path)
    assert bool(found) == is_found
    assert all(re.match(r"a\.md:2: '.+' in a document; write: ", f) for f in found)


def test_code_is_not_prose(tmp_path):
    (tmp_path / "realman").mkdir()
    (tmp_path / "realman" / "a.py").write_text('x = "color: red; width: 2px"\ny = "see `a; b`"\nz = "one; two"\n')
    (tmp_path / "a.md").write_text("```\na; b\n```\n`c; d`\n")
    assert [line.split(":")[1] for line in prose.semicolons(tmp_path)] == ["3"]
