"""The series goes into a checkout of the original and comes out again; the original is a stub with its names here."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREE_DIR = ROOT / "third_party/openpi"
POLICY_FILE = "src/openpi/policies/realman_policy.py"
CONFIGS_FILE = "src/openpi/training/misc/realman_config.py"
ORDER_FILE = "src/openpi/training/misc/__init__.py"
REGISTRY_FILE = "src/openpi/training/config.py"
CHECK = "if len({config.name for config in _CONFIGS}) != len(_CONFIGS):"

USE_THE_CONFIGS = """
import pathlib
import pickle

from openpi.training import config
from openpi.training.misc import realman_config

names = [c.name for c in realman_config.get_realman_configs()]
assert "pi0_realman" in names and "pi05_realman" in names, names
assert list(config._CONFIGS_DICT) == ["debug", "other", *names], list(config._CONFIGS_DICT)
assert [c.name for c in config._CONFIGS] == list(config._CONFIGS_DICT)
for name in names:
    train_config = config.get_config(name)
    assert isinstance(train_config, config.TrainConfig)
    assert pickle.loads(pickle.dumps(train_config)) == train_config
    data = train_config.data.create(pathlib.Path("assets"), train_config.model)
    assert data.repo_id == "realman/dual_arm" and data.prompt_from_task
    assert len(data.data_transforms.inputs) == len(data.data_transforms.outputs) == 2
print("used", *names)
"""


def run_python(stub, code):
    """Run code that imports the stub instead of this project's own framework."""
    environment = {**os.environ, "PYTHONPATH": str(stub.root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_applied(stub, before):
    after = stub.contents()
    assert set(after) - set(before) == {POLICY_FILE, ORDER_FILE, CONFIGS_FILE}
    for name in (POLICY_FILE, CONFIGS_FILE):
        assert after[name] == (TREE_DIR / name).read_bytes()
    assert after[ORDER_FILE] == (ROOT / "patches/added" / ORDER_FILE).read_bytes()
    assert {name for name in before if after[name] != before[name]} == {REGISTRY_FILE}
    old, new = before[REGISTRY_FILE].decode().splitlines(), after[REGISTRY_FILE].decode().splitlines()
    place, num_added = old.index(CHECK), len(new) - len(old)
    assert new[:place] + new[place + num_added :] == old
    added = new[place : place + num_added]
    assert 1 <= num_added <= 5
    assert "import openpi.training.misc.realman_config as _realman_config  # noqa: E402" in added
    assert added[-2:] == ["_CONFIGS.extend(_realman_config.get_realman_configs())", ""]


def test_applying_adds_two_files_and_registers_them_before_the_check_of_names(tool, stub):
    before = stub.contents()
    result = tool("apply", stub.root)
    assert (result.stderr, result.returncode) == ("", 0)
    assert (
        f"{stub.root}: applied, {POLICY_FILE}, {ORDER_FILE}, {CONFIGS_FILE}, {REGISTRY_FILE}; undo with "
        in result.stdout
    )
    assert_applied(stub, before)


@pytest.mark.parametrize("num_lines_before", [850, 3000])
def test_the_registration_finds_its_place_in_other_versions_of_the_registry(
    tool, write_stub, commit, tmp_path, num_lines_before
):
    stub = commit(write_stub(tmp_path / "openpi", num_lines_before))
    before = stub.contents()
    assert tool("apply", stub.root).returncode == 0
    assert_applied(stub, before)


@pytest.mark.parametrize(
    "first",
    [
        "openpi.training.misc.realman_config",
        "openpi.training.config",
        "openpi.policies.realman_policy",
        "openpi.models.model",
    ],
)
def test_the_configs_are_registered_whichever_module_is_imported_first(tool, stub, first):
    assert tool("apply", stub.root).returncode == 0
    output = run_python(
        stub, f"import {first}, openpi\nassert openpi.__file__.startswith({str(stub.root)!r})\n{USE_THE_CONFIGS}"
    )
    assert output.startswith("used pi0_realman")


def test_the_applied_policy_works_with_the_originals_names(tool, stub):
    assert tool("apply", stub.root).returncode == 0
    code = """
from openpi.models import model
from openpi.policies import realman_policy as p
example = p.make_realman_example()
inputs = p.RealmanInputs(model_type=model.ModelType.PI05)(example)
outputs = p.RealmanOutputs()({"actions": inputs["state"][None]})
assert (outputs["actions"][0] == example["state"]).all()
print(sorted(inputs["image"]))
"""
    assert run_python(stub, code) == "['base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb']\n"


def test_applying_twice_says_so_and_changes_nothing(tool, stub):
    tool("apply", stub.root)
    before = stub.contents()
    result = tool("apply", stub.root)
    assert (result.stdout, result.returncode) == (f"{stub.root}: already applied\n", 0)
    assert stub.contents() == before


def test_reversing_gives_the_start_back_byte_for_byte(tool, stub):
    before = stub.contents()
    tool("apply", stub.root)
    result = tool("reverse", stub.root)
    assert result.returncode == 0
    assert "reversed" in result.stdout
    assert stub.contents() == before
    assert stub.git("status", "--porcelain") == ""
    assert "nothing to reverse" in tool("reverse", stub.root).stdout
    assert stub.contents() == before


def test_a_series_that_was_committed_can_be_reversed_too(tool, stub):
    before = stub.contents()
    tool("apply", stub.root)
    stub.git("add", "-A")
    stub.git("commit", "-q", "-m", "robot")
    assert "already applied" in tool("apply", stub.root).stdout
    assert tool("reverse", stub.root).returncode == 0
    assert stub.contents() == before


def test_a_dirty_checkout_is_refused_and_left_alone(tool, stub):
    (stub.root / "README.md").write_text("mine\n")
    before = stub.contents()
    result = tool("apply", stub.root)
    assert result.returncode == 1
    assert (
        result.stderr
        == f"{stub.root}: found local changes in 1 tracked file(s), the first is README.md. Commit or stash them\n"
    )
    assert stub.contents() == before


def test_a_file_of_the_same_name_is_never_overwritten(tool, stub):
    (stub.root / POLICY_FILE).write_text("mine\n")
    before = stub.contents()
    result = tool("apply", stub.root)
    assert result.returncode == 1
    assert "(made for revision 15a9616) does not fit, nothing was changed" in result.stderr
    assert "already exists in working directory" in result.stderr
    assert stub.contents() == before


def test_a_registry_without_the_check_of_names_is_refused_and_nothing_is_half_applied(tool, stub):
    (stub.root / REGISTRY_FILE).write_text(stub.read(REGISTRY_FILE).replace("if len({", "if 2 > len({"))
    stub.git("commit", "-q", "-a", "-m", "another registry")
    before = stub.contents()
    result = tool("apply", stub.root)
    assert result.returncode == 1
    assert "patch does not apply" in result.stderr
    assert stub.contents() == before


def test_edited_files_are_not_reversed(tool, stub):
    tool("apply", stub.root)
    (stub.root / POLICY_FILE).write_text(stub.read(POLICY_FILE) + "# mine\n")
    before = stub.contents()
    result = tool("reverse", stub.root)
    assert result.returncode == 1
    assert "is not there as it was applied, nothing was changed" in result.stderr
    assert stub.contents() == before


def test_folders_that_are_no_checkout_are_refused_by_name(tool, stub, tmp_path):
    before = stub.contents()
    missing = tool("apply", tmp_path / "nowhere")
    inner = tool("apply", stub.root / "src")
    own = tool("apply", TREE_DIR)
    assert [result.returncode for result in (missing, inner, own)] == [1, 1, 1]
    assert missing.stderr == f"{tmp_path / 'nowhere'}: no such folder, expected a checkout of openpi\n"
    assert "not the root of an openpi checkout, src/openpi/transforms.py, src/openpi/models/model.py" in inner.stderr
    assert "this project's own framework, which has these files. Expected a checkout of the original" in own.stderr
    assert stub.contents() == before
    assert tool("apply").returncode == 2


def test_a_copy_inside_another_repository_is_really_patched(tool, write_stub, commit, tmp_path):
    # There `git apply` takes the paths for the outer repository's, changes nothing and reports success.
    outer = write_stub(tmp_path / "outer")
    stub = write_stub(outer.root / "third_party" / "openpi")
    commit(outer)
    outer_before, before = outer.contents(), stub.contents()
    assert tool("apply", stub.root).returncode == 0
    assert_applied(stub, before)
    outside = {name for name in outer_before if not name.startswith("third_party/")}
    assert {name: outer.contents()[name] for name in outside} == {name: outer_before[name] for name in outside}
    assert "already applied" in tool("apply", stub.root).stdout
    assert tool("reverse", stub.root).returncode == 0
    assert outer.contents() == outer_before


def test_a_dirty_copy_inside_another_repository_is_refused(tool, write_stub, commit, tmp_path):
    outer = write_stub(tmp_path / "outer")
    stub = write_stub(outer.root / "third_party" / "openpi")
    commit(outer)
    (stub.root / "README.md").write_text("mine\n")
    assert "changes in 1 tracked file(s), the first is third_party/openpi/README.md." in tool("apply", stub.root).stderr


def test_a_plain_folder_is_patched_and_restored(tool, write_stub, tmp_path):
    stub = write_stub(tmp_path / "unpacked archive")
    before = stub.contents()
    assert tool("apply", stub.root).returncode == 0
    assert_applied(stub, before)
    assert tool("reverse", stub.root).returncode == 0
    assert stub.contents() == before


def test_a_link_to_a_checkout_is_followed_and_a_hooks_environment_is_not(tool, stub, tmp_path):
    before = stub.contents()
    (tmp_path / "link").symlink_to(stub.root)
    environment = {**os.environ, "GIT_DIR": str(tmp_path / "elsewhere"), "GIT_INDEX_FILE": str(tmp_path / "index")}
    assert tool("apply", tmp_path / "link", env=environment).returncode == 0
    assert_applied(stub, before)


def test_git_am_takes_the_series_as_commits(stub):
    before = stub.contents()
    names = [line.split()[0] for line in (ROOT / "patches/series").read_text().splitlines()]
    stub.git("am", "-q", *(str(ROOT / "patches" / name) for name in names))
    assert_applied(stub, before)
    assert stub.git("log", "--format=%s", "-2").splitlines() == [
        "training: register the configs of the RealMan dual arm",
        "policies: read and drive the RealMan dual arm",
    ]


@pytest.mark.skipif(shutil.which("patch") is None, reason="GNU patch is not installed")
def test_gnu_patch_takes_the_series_without_fuzz(write_stub, tmp_path):
    stub = write_stub(tmp_path / "openpi", 400)
    before = stub.contents()
    for line in (ROOT / "patches/series").read_text().splitlines():
        command = [
            "patch",
            "-p1",
            "--fuzz=0",
            "-N",
            "-s",
            "--no-backup-if-mismatch",
            "-i",
            ROOT / "patches" / line.split()[0],
        ]
        subprocess.run(command, cwd=stub.root, check=True)
    assert_applied(stub, before)


@pytest.mark.upstream
def test_a_real_checkout_takes_the_series_and_gets_its_own_files_back(tool, tmp_path):
    source = os.environ.get("OPENPI_UPSTREAM")
    if not source:
        pytest.skip("OPENPI_UPSTREAM is not set; point it at a checkout of the original openpi, installed or not")
    root = tmp_path / "openpi"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", source, root], check=True)
    before = {path: path.read_bytes() for path in (root / "src").rglob("*.py")}
    assert tool("apply", root).returncode == 0
    lines = (root / REGISTRY_FILE).read_text().splitlines()
    assert lines[lines.index(CHECK) - 2].startswith("_CONFIGS.extend(_realman_config.get_realman_configs(")
    assert tool("reverse", root).returncode == 0
    assert {path: path.read_bytes() for path in (root / "src").rglob("*.py")} == before
