"""The torture counts what it attacks, can be repeated and interrupted, and can tell right from wrong."""

import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.torture import content
from benchmarks.torture import damage
from benchmarks.torture import material
from benchmarks.torture import processes
from benchmarks.torture import settings_values
from benchmarks.torture.attack import Outcome
from benchmarks.torture.runner import Runner

ROOT = Path(__file__).resolve().parents[1]


class Fake:
    """A kind that loses what its script says, and notes the chances that it got."""

    share = 1.0

    def __init__(self, name="fake", verdicts=("survived",), error=None):
        self.name = name
        self.verdicts = list(verdicts)
        self.error = error
        self.chances = []
        self.is_closed = False

    def open(self, folder, seconds):
        assert folder.is_dir()

    def attack(self, rng, index, folder):
        if index >= len(self.verdicts):
            raise self.error or KeyboardInterrupt
        self.chances.append(rng.random())
        (folder / "input").write_text("damaged")
        return Outcome("thing", self.verdicts[index], "so", count=3 if self.verdicts[index] == "survived" else 1)

    def notes(self):
        return ["a note"]

    def close(self):
        self.is_closed = True


def torture(folder, *kinds, seed=0, seconds=3600.0, only=None):
    folder.mkdir(exist_ok=True)
    said = []
    runner = Runner(kinds, seed, seconds, folder, only, say=said.append)
    return runner.run(), said, runner


def test_every_kind_gets_an_attack_even_if_there_is_no_time(tmp_path, capsys):
    kinds = Fake("one"), Fake("two")
    code, _, _ = torture(tmp_path / "w", *kinds, seconds=0.0)
    assert code == 0
    assert [len(kind.chances) for kind in kinds] == [1, 1]
    assert all(kind.is_closed for kind in kinds)
    assert not (tmp_path / "w").exists()
    table = capsys.readouterr().out
    assert "one" in table
    assert "a note" in table


def test_ctrl_c_prints_the_table_closes_everything_and_has_its_own_exit_code(tmp_path, capsys):
    kind = Fake(verdicts=["survived", "undetectable", "survived"])
    code, said, runner = torture(tmp_path / "w", kind)
    assert code == 130
    assert said[-1] == "interrupted"
    assert kind.is_closed
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "thing" in line]
    # Attacks, survived, undetectable, lost.
    assert [word for word in row if word.isdigit()][:4] == ["7", "6", "1", "0"]
    assert runner.losses == 0


def test_the_last_row_adds_everything_up(tmp_path, capsys):
    verdicts = ["survived", "undetectable", "lost"]
    torture(tmp_path / "w", *(Fake(f"kind {verdict}", [verdict]) for verdict in verdicts), seconds=0.0)
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if " all " in line]
    assert [word for word in row if word.isdigit()] == ["5", "3", "1", "1"]


def test_a_loss_is_kept_with_the_command_that_repeats_it(tmp_path):
    code, said, runner = torture(tmp_path / "w", Fake(verdicts=["survived", "lost"]), seed=7)
    assert code == 1
    assert runner.losses == 1
    assert any('make torture ARGS="--seed 7 --kinds fake --only 1"' in line for line in said)
    kept = tmp_path / "w/fake/000001"
    assert (kept / "input").read_text() == "damaged"
    assert "--only 1" in (kept / "loss.txt").read_text()
    assert not (tmp_path / "w/fake/000000").exists()


def test_an_attack_that_cannot_be_judged_is_a_loss(tmp_path):
    kind = Fake(verdicts=[], error=RuntimeError("no such luck"))
    code, said, _ = torture(tmp_path / "w", kind, seconds=0.0)
    assert code == 1
    assert any("RuntimeError: no such luck" in line for line in said)
    assert "no such luck" in (tmp_path / "w/fake/000000/traceback.txt").read_text()


def test_a_seed_and_a_number_decide_an_attack(tmp_path):
    def chances(seed, only=None):
        kind = Fake(verdicts=["survived"] * 4)
        torture(tmp_path / "w", kind, seed=seed, only=only)
        return kind.chances

    assert chances(1) == chances(1)
    assert chances(1) != chances(2)
    assert chances(1, only=2) == [chances(1)[2]]


@pytest.mark.parametrize("name", sorted(damage.ALL))
def test_damage_changes_a_file_and_can_be_repeated(name):
    data = bytes(range(256)) * 20
    made = [damage.ALL[name](data, random.Random(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0] != data
    assert name == "empty" or made[0] != made[2]


@pytest.mark.parametrize("name", ["flip_bits", "scribble", "zero", "swap", "head", "truncate", "append"])
def test_damage_fits_files_of_any_size(name):
    for size in (1, 2, 3, 10, 5000):
        for seed in range(20):
            made = damage.ALL[name](bytes(size), random.Random(seed))
            if name not in ("truncate", "append"):
                assert len(made) == size


@pytest.mark.parametrize("form", material.FORMS)
def test_every_form_of_recording_says_the_same(tmp_path, form):
    found = content.recordings(material.write_recordings(tmp_path / form, form=form))
    truth = content.recordings(material.write_recordings(tmp_path / "raw2", form="raw"))
    assert found["lengths"] == [8, 7]
    assert found["tasks"] == list(material.TASKS)
    assert (found["state"], found["action"]) == (truth["state"], truth["action"])
    # JPEG is not lossless.
    assert (found["images"] == truth["images"]) == (form in ("raw", "gzip"))


def test_settings_that_were_misunderstood_or_switch_something_off_are_found(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("[rm65]\nfps = 30\nmax_state_age_s = nan\n")
    assert settings_values.problems(path, {"rm65": {"fps": 30.0, "max_state_age_s": float("nan")}}) == [
        "rm65.max_state_age_s = nan was accepted"
    ]
    assert settings_values.problems(path, {"rm65": {"fps": 50.0, "max_state_age_s": 1.0}}) == [
        "rm65.fps is 50.0, but the file says 30",
        "rm65.max_state_age_s is 1.0, but the file says nan",
    ]
    path.write_text("[safety]\nmax_overrun_ms = -1\n")
    assert settings_values.problems(path, {"safety": {"max_overrun_ms": -1.0}}) == [
        "safety.max_overrun_ms = -1.0 was accepted"
    ]


def test_a_group_ends_with_its_block(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    command = ["-c", code + "print('up', flush=True); time.sleep(600)"]
    with processes.started(command, tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        assert not processes.is_group_gone(process, wait_s=0.05)
    assert processes.is_group_gone(process)


def test_a_command_that_hangs_has_no_exit_code(tmp_path):
    assert processes.run(["-c", "import time; time.sleep(600)"], tmp_path, timeout_s=0.5).code is None


@pytest.mark.parametrize(
    ("err", "code", "is_refusal"),
    [
        ("error: a: found b, expected c", 1, True),
        ("W 10:00 careful\nerror: a: found b", 1, True),
        ("error: a\nerror: b", 1, False),
        ("Traceback (most recent call last):\nerror: a", 1, False),
        ("error: a", 0, False),
        ("", 1, False),
        ("error: a", -11, False),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(err, code, is_refusal):
    assert processes.Ended(code, "", err).is_refusal == is_refusal


def run_module(folder, *flags):
    command = [sys.executable, "-m", "benchmarks.torture", "--minutes", "0", "--folder", folder, *flags]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=processes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kills", "files", "messages", "robot"])
def test_the_product_survives_the_first_attack_of_each_kind(tmp_path, kind):
    process = run_module(tmp_path, "--kinds", kind)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    assert kind in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_file(tmp_path):
    process = run_module(tmp_path, "--kinds", "messages", "--minutes", "60")
    while "preparing" not in process.stderr.readline():
        assert process.poll() is None
    # Somewhere in the start of the policy server.
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Torture, seed 0" in out
    assert list(tmp_path.iterdir()) == []
    import psutil

    assert not [p for p in psutil.process_iter(["environ", "cwd"]) if str(tmp_path) in str(p.info["cwd"])]


def test_limits_are_measured_at_the_rate_of_the_wire():
    from benchmarks.torture import robot_motion

    # 60 deg/s at 50 Hz are 1.2 deg per command, reached in five commands of 600 deg/s^2.
    steps = np.minimum(np.arange(1, 20) * 0.24, 1.2)
    stream = np.concatenate([[0.0], np.cumsum(steps)])[:, None] * np.ones(6)
    times_s = np.arange(19) / 50
    for name, values, limit, _ in robot_motion._rates(stream, times_s, "low"):
        assert values.max() == pytest.approx(limit), name
    stream[10:] += 1.0
    over = {name: values.max() / limit for name, values, limit, _ in robot_motion._rates(stream, times_s, "low")}
    assert over["speed deg/s"] == pytest.approx(110 / 60)
    assert over["acceleration deg/s2"] > 4
