"""The command `realman`: its list, wrong names, missing packages, and old module paths."""

import importlib
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

import realman
from realman import __main__ as command
from realman import _moved
from realman.errors import RealmanError


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | (env or {})
    )


def test_without_a_command_the_list_of_commands_is_shown():
    result = run("-m", "realman")
    assert (result.returncode, result.stderr) == (0, "")
    for name, entry in command.COMMANDS.items():
        assert re.search(rf"^  {name}\s+{re.escape(entry.help)}$", result.stdout, re.MULTILINE), name


def test_the_version_is_the_packages():
    assert run("-m", "realman", "--version").stdout == f"realman-openpi {realman.__version__}\n"


@pytest.mark.parametrize("name", sorted(command.COMMANDS))
def test_every_command_has_a_main_and_flags_and_shows_them_under_its_name(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["realman", name, "--help"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 0
    assert f"usage: realman {name} [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("covert", "Did you mean 'realman convert'?"), ("xyz", "'realman --help' lists the commands")],
)
def test_an_unknown_command_is_answered_in_one_line_with_the_nearest(wrong, hint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["realman", wrong])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: realman: there is no command '{wrong}'. {hint}\n"


def test_a_package_that_is_not_installed_is_named_with_the_extra_that_brings_it():
    # In a process of its own: modules that are imported twice would confuse later tests.
    code = (
        "import sys; sys.modules['pyarrow'] = None; sys.argv = ['realman', 'convert']\n"
        "from realman.__main__ import main; main()"
    )
    result = run("-c", code)
    assert result.returncode == 1
    remedy = "Install it: pip install 'realman-openpi[data]'"
    assert result.stderr == f"error: realman convert: the package 'pyarrow' is not installed. {remedy}\n"


@pytest.mark.parametrize(("module", "name"), sorted(_moved.COMMANDS.items()))
def test_an_old_module_path_is_answered_in_one_line_with_the_new_command(module, name):
    result = run("-m", module, "--data", "/my data")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"error: 'python -m {module}' is now: realman {name} --data '/my data'\n"


@pytest.mark.parametrize("old", sorted(_moved.MOVED))
def test_importing_an_old_module_names_the_new_one_which_exists(old):
    with pytest.raises(ModuleNotFoundError, match=f"'{old}' is now '{_moved.MOVED[old]}'"):
        __import__(old)
    __import__(_moved.MOVED[old])


@pytest.mark.parametrize(("statement", "place"), [("from realman import client", "realman.runtime.client")])
def test_an_old_module_is_named_by_a_from_import_too(statement, place):
    with pytest.raises(ModuleNotFoundError, match=f"'realman.client' is now '{place}'"):
        exec(statement)


def test_pypis_client_over_ours_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.metadata, "version", lambda name: "0.1.2")
    monkeypatch.setattr(sys, "argv", ["realman", "client", "--help"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: realman client: found openpi-client 0.1.2, expected this project's own. Install ")


def test_a_module_that_never_was_is_missing_as_usual():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'realman\.nowhere'"):
        __import__("realman.nowhere")


def test_the_finder_accepts_the_path_of_a_namespace_package(tmp_path, monkeypatch):
    (tmp_path / "loose_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    path = __import__("loose_folder").__path__  # iterable, but not a sequence
    assert _moved.MovedModules().find_spec("loose_folder.part", path) is None


@pytest.mark.parametrize("place", ["first", "last"])
def test_packages_of_another_python_do_not_replace_ours_and_can_still_be_imported(tmp_path, place):
    """A sourced ROS 2 sets PYTHONPATH. Its packages are compiled for another Python."""
    for name in ("tyro", "numpy", "rich", "websockets"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('of another Python')\n")
    (tmp_path / "pyrealsense9.py").touch()
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    entries = [str(tmp_path), *own] if place == "first" else [*own, str(tmp_path)]
    env = {"PYTHONPATH": os.pathsep.join(entry for entry in entries if entry)}
    result = run("-m", "realman", "client", "--help", env=env)
    assert (result.returncode, result.stderr) == (0, "")
    code = "from realman import __main__; import numpy, tyro, pyrealsense9, realman; print(realman.__file__)"
    result = run("-c", code, env=env)
    assert result.stdout.strip() == realman.__file__


@pytest.mark.parametrize(
    ("name", "flags", "flag"),
    [
        ("offline", {"out_dir": "/proc/x", "port": 1}, "--out-dir"),
        ("inspect", {"out_dir": "/proc/x", "data": "/none"}, "--out-dir"),
        ("sample", {"out_dir": "/proc/x"}, "--out-dir"),
        ("convert", {"root": "/proc/x", "raw_dir": "/none"}, "--root"),
        ("demo", {"out_dir": "/proc/x"}, "--out-dir"),
        ("demo", {"sample_dir": "/proc/x"}, "--sample-dir"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_before_any_work(name, flags, flag):
    module = importlib.import_module(command.COMMANDS[name].module)
    paths = {key: Path(value) if isinstance(value, str) else value for key, value in flags.items()}
    with pytest.raises(
        RealmanError, match=rf"^/proc/x.*: cannot be written \(.*\)\. Choose another folder with {flag}$"
    ):
        module.main(module.Args(**paths))
