"""Faults typed at the running emulator."""

import dataclasses
import json
import socket
import subprocess
import sys

import pytest

from realman.errors import RobotError
from realman.robots.emulator import Emulator
from realman.robots.emulator import Faults
from realman.robots.emulator import prompt
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms


@pytest.fixture
def emulator():
    port, push_port = free_ports()
    with Emulator(two_arms(port, push_port)) as emulator:
        yield emulator


def ask(emulator: Emulator, side: str, command: str, timeout_s: float = 10.0) -> dict | None:
    with socket.create_connection(emulator.addresses[side], timeout_s) as client:
        client.sendall(json.dumps({"command": command}).encode() + b"\r\n")
        client.settimeout(timeout_s)
        try:
            return json.loads(client.recv(4096).split(b"\r\n")[0])
        except TimeoutError:
            return None


def test_errors_stand_until_they_are_cleared(emulator):
    assert prompt.obey(emulator, "left error 100D\n") == "left arm: error 100D"
    prompt.obey(emulator, "left joint-error 3 4000")
    arm = emulator.controllers["left"]
    assert arm.errors == [0x100D]
    assert arm.joint_errors.tolist() == [0, 0, 0x4000, 0, 0, 0]
    assert ask(emulator, "left", "get_controller_state")["err_flag"] == 0x100D
    assert emulator.controllers["right"].errors == []
    prompt.obey(emulator, "left clear")
    assert arm.errors == []
    assert not arm.joint_errors.any()


def test_commands_are_swallowed_refused_or_late_until_healed(emulator):
    faults = emulator.controllers["right"].faults
    prompt.obey(emulator, "right silent get_joint_degree")
    assert ask(emulator, "right", "get_joint_degree", 0.2) is None
    assert ask(emulator, "left", "get_joint_degree") is not None
    prompt.obey(emulator, "right reject set_arm_stop")
    assert ask(emulator, "right", "set_arm_stop") == {"command": "set_arm_stop", "arm_stop": False}
    prompt.obey(emulator, "right hang *")
    prompt.obey(emulator, "right delay 0.5")
    prompt.obey(emulator, "right push frozen")
    assert faults.is_push_frozen
    prompt.obey(emulator, "right push off")
    assert faults.is_push_silent
    prompt.obey(emulator, "right heal")
    assert dataclasses.asdict(faults) == dataclasses.asdict(Faults())
    assert ask(emulator, "right", "set_arm_stop") == {"command": "set_arm_stop", "arm_stop": True}


def test_a_connection_is_reset(emulator):
    with socket.create_connection(emulator.addresses["left"], 10) as client:
        client.sendall(b'{"command":"get_joint_degree"}\r\n')
        client.recv(4096)
        prompt.obey(emulator, "left reset")
        with pytest.raises(ConnectionResetError):
            client.recv(4096)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("middle reset", "expected 'right' or 'left'"),
        ("left", "expected 'right' or 'left'"),
        ("left explode", "'explode': unknown fault, expected one of error, joint-error"),
        ("left error collision", "expected 'right|left error CODE"),
        ("left joint-error 7 1", "expected 'right|left joint-error N BITS"),
        ("left push sideways", "expected 'right|left push off|frozen|on"),
        ("left delay -1", "expected 'right|left delay SECONDS"),
        ("left clear everything", "expected 'right|left clear"),
    ],
)
def test_an_invalid_line_is_refused_with_what_was_expected(emulator, line, says):
    with pytest.raises(RobotError) as caught:
        prompt.obey(emulator, line)
    assert says in str(caught.value)
    assert emulator.controllers["left"].errors == []


def test_the_program_takes_lines_and_lists_them():
    push_port = str(free_ports()[1])
    command = [sys.executable, "-m", "realman", "emulator", "--port", "0", "--push-port", push_port]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        try:
            assert "right arm: 127.0.0.1" in run.stdout.readline()
            run.stdout.readline()
            run.stdin.write("left error 100D\nhelp\n")
            run.stdin.flush()
            assert run.stdout.readline() == "left arm: error 100D\n"
            assert "right|left error CODE" in run.stdout.readline()
        finally:
            run.terminate()
