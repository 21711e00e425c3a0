import dataclasses
import os
import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses, logging, sys
from openpi.shared import cli, errors

@dataclasses.dataclass(frozen=True)
class Args:
    # What to do.
    what: str
    dry_run: bool = False

def main(args: Args) -> int | None:
    \"\"\"Do the thing.\"\"\"
    logging.getLogger("thing").info("working")
    if args.what == "fail":
        raise errors.DataError("file.h5: 'action' [bold] is missing,\\n expected 14 numbers")
    if args.what == "stop":
        raise KeyboardInterrupt
    if args.what == "bug":
        raise RuntimeError("a bug")
    print("result", args.dry_run)
    return 3 if args.what == "three" else None

def parse():
    raise errors.ConfigError("config 'pi' not found")

if __name__ == "__main__":
    cli.run(main, parse if sys.argv[1:] == ["parse"] else Args)
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "script.py"
    path.write_text(SCRIPT)

    def run_script(*args, **env):
        done = subprocess.run(
            [sys.executable, path, *args], capture_output=True, text=True, env=os.environ | env, timeout=60, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run_script


def test_results_go_to_stdout_and_logs_to_stderr(run):
    outcome = run("--what", "work", "--dry-run")
    assert (outcome.status, outcome.out) == (0, "result True\n")
    assert outcome.err.endswith("INFO working\n")


def test_what_main_returns_is_the_exit_status(run):
    assert run("--what", "three").status == 3


def test_an_error_of_the_user_is_one_line_and_status_1(run):
    outcome = run("--what", "fail")
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1] == "error: file.h5: 'action' [bold] is missing, expected 14 numbers"
    assert "Traceback" not in outcome.err


def test_the_traceback_of_an_error_of_the_user_can_be_seen(run):
    outcome = run("--what", "fail", OPENPI_DEBUG="1")
    assert outcome.status == 1
    assert "Traceback" in outcome.err


def test_a_bug_keeps_its_traceback(run):
    outcome = run("--what", "bug")
    assert outcome.status == 1
    assert "Traceback" in outcome.err


def test_an_interrupt_is_status_130_without_a_traceback(run):
    outcome = run("--what", "stop")
    assert (outcome.status, outcome.err.splitlines()[-1]) == (130, "error: interrupted")


def test_wrong_flags_are_status_2(run):
    outcome = run("--wat", "work")
    assert outcome.status == 2
    assert "--what" in outcome.err


def test_a_function_may_parse_the_flags_itself_and_refuse_them(run):
    outcome = run("parse")
    assert (outcome.status, outcome.err) == (1, "error: config 'pi' not found\n")
