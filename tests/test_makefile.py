"""The Makefile: only its command line counts, and texts arrive as they were typed."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The settings that each target passes on.
PASSED = {
    "sample": ("DATA",),
    "inspect": ("DATA",),
    "convert": ("DATA", "REPO_ID"),
    "verify": ("DATA", "REPO_ID"),
    "norm-stats": ("CONFIG", "REPO_ID"),
    "train": ("CONFIG", "EXP", "REPO_ID"),
    "export": ("CONFIG", "CKPT", "OUT"),
    "serve": ("HOST", "PORT", "PROMPT", "CONFIG", "CKPT"),
    "offline": ("HOST", "PORT", "DATA", "PROMPT"),
    "client": ("HOST", "PORT", "PROMPT"),
    "apply-patches": ("OPENPI",),
}
# Variables of make itself and of the shell.
FOREIGN = {"MAKEFILE_LIST", "MAKEFLAGS", "SHELL"}
TEXTS = [
    "my towel", "two  spaces ", "it's", 'a "red" cup', "$HOME $$x $(id) ${PATH}", "`id`", "a;b&c|d", "#1, 50%", "~/x",
    "-x=*?[a]", "two\nlines", "a\\b", "100%(PORT)", "毛巾",
]  # fmt: skip


def make(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Print what make would run."""
    command = ["make", "-n", "-o", ".venv/.ready", *words]
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=own | (env or {}))


def arguments(*words: str) -> list[str]:
    """Return the arguments that the programs of a recipe would get, as bash splits them."""
    recipe = make(*words)
    assert recipe.returncode == 0, recipe.stderr
    programs = "".join(f"function .venv/bin/{name} {{ printf '%s\\0' \"$@\"; }}\n" for name in ("python", "realman"))
    result = subprocess.run(["bash", "-c", programs + recipe.stdout], check=True, capture_output=True, text=True)
    return result.stdout.split("\0")[:-1]


def variables() -> set[str]:
    """Return the names that the Makefile reads or defines."""
    text = (ROOT / "Makefile").read_text()
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    read = re.findall(r"\$[({](?:value |call |origin )?([A-Za-z_]+)[),}]", text)
    read += re.findall(r"\$\(call \w+,(?:--[\w-]+,)?([A-Z_]+)", text)
    defined = re.findall(r"^(?:define )?(\w+) *[:?]?=?(?==| *$)", text, flags=re.MULTILINE)
    return {*read, *defined} - FOREIGN - {"endef", "endif", "name"}


def test_the_variables_of_the_makefile_are_found():
    assert {"CONFIG", "PROMPT", "ARGS", "SIM", "OPENPI", "REVERSE", "PY", "LOCK", "quote", "newline"} <= variables()


@pytest.mark.parametrize("flag", [(), ("-e",)], ids=["make", "make -e"])
def test_no_exported_variable_is_a_setting(flag):
    words = (*flag, *PASSED, "setup", "demo", "test", "docs", "lint", "clean", "DATA=d", "OPENPI=o")
    wanted = make(*words)
    assert wanted.returncode == 0, wanted.stderr
    assert "realman client" in wanted.stdout
    for name in sorted(variables()):
        found = make(*words, env={name: "%n@%m %~ %#"})
        assert found.returncode == 0, (name, found.stderr)
        assert found.stdout == wanted.stdout, name


@pytest.mark.parametrize(("target", "name"), [("inspect", "DATA"), ("convert", "DATA"), ("apply-patches", "OPENPI")])
def test_an_exported_variable_is_not_the_one_that_a_target_needs(target, name):
    result = make(target, env={name: "/x"})
    assert result.returncode == 2
    assert f"{target} needs {name}: make {target} {name}=" in result.stderr


@pytest.mark.parametrize("text", TEXTS)
def test_every_target_passes_a_text_on_as_it_is(text):
    for target, names in PASSED.items():
        given = {name: f"{name}:{text}" for name in names}
        found = arguments(target, *(f"{name}={value}" for name, value in given.items()))
        for name, value in given.items():
            assert found.count(value) == 1, (target, name)


@pytest.mark.parametrize("text", TEXTS)
def test_the_run_of_a_name_is_trained_exported_and_served(text):
    run = f"checkpoints/{text}/{text}"
    for target in ("export", "serve"):
        assert run in arguments(target, f"EXP={text}", f"CONFIG={text}")


@pytest.mark.parametrize("text", TEXTS)
def test_a_bundle_is_found_by_any_name(text, tmp_path):
    bundle = tmp_path / text
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").touch()
    assert "--policy.config" not in arguments("serve", f"CKPT={bundle}")
    assert "--policy.config" in arguments("serve", f"CKPT={bundle}", "CONFIG=pi05_realman")
    assert "--policy.config" in arguments("serve", f"CKPT={bundle}x")


def test_further_flags_are_read_as_the_shell_reads_them():
    words = arguments("client", """ARGS=--prompt "it's 5 $" --site 'my site.toml' --host $((1+1))""")
    assert words == ["client", "--prompt", "it's 5 $", "--site", "my site.toml", "--host", "2"]


def test_a_default_does_not_overrule_the_sites_file():
    assert arguments("client", "ARGS=--site site.toml") == ["client", "--site", "site.toml"]
    assert arguments("client", "HOST=gpu-server") == ["client", "--host", "gpu-server"]


@pytest.mark.parametrize("text", ["rocm", "cuda12 cuda13", "cuda", "$(PY)"])
def test_an_unknown_accelerator_is_refused(text):
    result = make("setup", f"GPU={text}")
    assert result.returncode == 2
    assert f"GPU is '{text}', expected cuda12, cuda13 or nothing" in result.stderr


def test_what_another_python_uses_reaches_the_robots_targets_only(tmp_path):
    shown = tmp_path / "shown.mk"
    shown.write_text(
        f"include {ROOT}/Makefile\n" + "".join(f'{t}:\n\t@echo $@ "$${{PYTHONPATH-}}"\n' for t in ("test", "client"))
    )
    env = os.environ | {"PYTHONPATH": "/opt/ros/humble"}
    command = ["make", "-s", "-o", ".venv/.ready", "-f", str(shown), "test", "client"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=ROOT)
    assert result.stdout.splitlines() == ["test ", "client /opt/ros/humble"]
