"""The series is up to date, adds only, and uses nothing that the original lacks; the check finds what is wrong."""

from pathlib import Path
import shutil

import pytest

ROOT = Path(__file__).resolve().parents[2]
POLICY_FILE = "third_party/openpi/src/openpi/policies/realman_policy.py"
CONFIGS_FILE = "third_party/openpi/src/openpi/training/misc/realman_config.py"
ORDER_FILE = "src/openpi/training/misc/__init__.py"
CHECK = "if len({config.name for config in _CONFIGS}) != len(_CONFIGS):"


def series():
    return [line.split()[0] for line in (ROOT / "patches" / "series").read_text().splitlines()]


@pytest.fixture
def project(tmp_path):
    """A copy of the tool, the series and the two files of the tree that it reads."""
    copy = tmp_path / "project"
    shutil.copytree(ROOT / "patches", copy / "patches", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (POLICY_FILE, CONFIGS_FILE):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_series_of_this_tree_is_up_to_date_and_fits_the_original(tool):
    result = tool("check")
    assert (result.stderr, result.returncode) == ("", 0)
    assert "additions only" in result.stdout


def test_making_the_patches_again_changes_nothing(tool, project):
    before = {path.name: path.read_bytes() for path in (project / "patches").iterdir() if path.is_file()}
    assert tool("make", project=project).stdout == "patches: up to date\n"
    assert {path.name: path.read_bytes() for path in (project / "patches").iterdir() if path.is_file()} == before


def test_every_patch_is_in_the_series_once_and_says_why():
    assert sorted(series()) == sorted(path.name for path in (ROOT / "patches").glob("*.patch"))
    for name in series():
        header = (ROOT / "patches" / name).read_text().split("\n---\n")[0]
        assert "\nSubject: [PATCH] " in header
        assert "\nWhy: " in header
        assert "\nUpstream-Status: not-forwarded (" in header


def test_added_files_are_byte_for_byte_those_of_the_tree():
    added = {}
    for name in series():
        for part in (ROOT / "patches" / name).read_text().split("diff --git ")[1:]:
            if "--- /dev/null" in part:
                path = part.split("\n+++ b/")[1].split("\n")[0]
                added[path] = "".join(f"{line[1:]}\n" for line in part.split("@@\n")[1].splitlines())
    sources = {f.removeprefix("third_party/openpi/"): ROOT / f for f in (POLICY_FILE, CONFIGS_FILE)}
    sources[ORDER_FILE] = ROOT / "patches/added" / ORDER_FILE
    assert set(added) == set(sources)
    for path, text in added.items():
        assert text.encode() == sources[path].read_bytes()


def test_the_registration_quotes_one_line_of_the_original_and_adds_five_at_most():
    patch = (ROOT / "patches/realman-configs.patch").read_text()
    hunk = patch.split("+++ b/src/openpi/training/config.py\n")[1].splitlines()[1:]
    assert [line[1:] for line in hunk if line.startswith(" ")] == ["", CHECK]
    assert (hunk[0], hunk[-1]) == (" ", f" {CHECK}")
    added = [line[1:] for line in hunk if line.startswith("+")]
    assert 1 <= len(added) <= 5
    assert len(added) == len(hunk) - 2


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        (
            "patches/realman-policy.patch",
            "+CAMERAS",
            "+CAMERA",
            "patches/realman-policy.patch: differs from what the tree gives",
        ),
        ("patches/series", "realman-policy.patch", "", "patches/series: differs from what the tree gives"),
        (POLICY_FILE, "CAMERAS", "CAMERA", "patches/realman-policy.patch: differs from what the tree gives"),
        (
            POLICY_FILE,
            "import numpy as np",
            "import cv2",
            "imports 'cv2', which a checkout of the original may not have",
        ),
        (POLICY_FILE, "import numpy as np", "from realman import spec", "imports 'realman.spec', which a checkout"),
        (
            POLICY_FILE,
            "import numpy as np",
            "from openpi.shared import errors",
            "imports 'openpi.shared.errors', which",
        ),
        (
            POLICY_FILE,
            "transforms.make_bool_mask",
            "transforms.pad_to_dim",
            "'openpi.transforms' of the original has no 'pad_to",
        ),
        (
            POLICY_FILE,
            "import numpy as np",
            "from openpi.transforms import compose",
            "of the original has no 'compose'",
        ),
        (
            CONFIGS_FILE,
            "Config(pi05=True)",
            "Config(vision_variant=1)",
            "'Pi0Config' of the original takes no 'vision_variant'",
        ),
        (
            CONFIGS_FILE,
            "_config.TrainConfig(",
            "_config.Recipe(",
            "'openpi.training.config' of the original has no 'Recipe'",
        ),
        (
            f"patches/added/{ORDER_FILE}",
            "import openpi.training.config",
            "import realman.spec",
            "imports 'realman.spec', which a checkout",
        ),
    ],
)
def test_the_check_finds(tool, project, file, old, new, problem):
    edit(project / file, old, new)
    result = tool("check", project=project)
    assert result.returncode == 1
    assert problem in result.stderr


def test_the_check_finds_files_that_are_missing_or_too_many_and_reports_all_at_once(tool, project):
    (project / "patches/series").unlink()
    (project / "patches/stray.patch").write_text("")
    result = tool("check", project=project)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "patches/series: missing. Run 'make patches'",
        "patches/stray.patch: not in the series. Add it to SERIES in render.py, or remove it",
    ]


def test_the_check_finds_a_hunk_that_removes_or_quotes_too_much_and_a_header_without_reason(tool, project):
    edit(project / "patches/render.py", '" ",\n        *(', '" ",\n        " ]",\n        "-[",\n        *(')
    edit(project / "patches/render.py", "Upstream-Status: {status}", "")
    assert tool("make", project=project).returncode == 0
    result = tool("check", project=project)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "patches/realman-policy.patch: the header has no 'Upstream-Status:'",
        "patches/realman-configs.patch: the header has no 'Upstream-Status:'",
        "patches/realman-configs.patch: a hunk removes lines, expected additions only",
        "patches/realman-configs.patch: a hunk quotes more than 1 line of the original",
    ]


def test_making_carries_an_edit_of_the_tree_into_the_patch(tool, project):
    edit(project / POLICY_FILE, "import numpy as np\n", "import numpy as np\n\n# A remark.\n")
    assert tool("make", project=project).stdout == "patches: realman-policy.patch written\n"
    assert "+# A remark.\n" in (project / "patches/realman-policy.patch").read_text()
    assert tool("check", project=project).returncode == 0
