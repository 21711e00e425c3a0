"""Arms by address and by name: which spellings are taken, and that both are two machines."""

import socket
import threading

import pytest

from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.robots.rm65 import addresses

NAMES = {"arm-right": "127.0.0.1", "arm-left.lab.local": "127.0.0.2", "Arm_Left": "127.0.0.2"}


@pytest.fixture
def name_server(monkeypatch):
    """Answer the names above and no other name, and count the questions."""
    asked = []

    def answer(host, *args, **kwargs):
        asked.append(host)
        if host not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (NAMES[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


@pytest.mark.parametrize(
    "host",
    ["192.168.1.18", "10.0.0.1", "127.0.0.2", "arm-left", "arm_left", "arm-left.lab.local.", "rm65", "a1", "7arm"],
)
def test_addresses_and_names_are_taken(host):
    assert addresses.problem(host) is None
    assert Rm65Settings(right_host=host, left_host="10.9.9.9").right_host == host


@pytest.mark.parametrize(
    "host",
    [
        "192.168.001.018", "192.168.1.010", "192.168.1", "192.168.1.256", "192.168.1.18.", "3232235794", "0xC0A80112",
        "0x7f.1", "1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "", " ", "192.168.1.18 ", "192.168.1.18:8080",
        "fe80::1", "[::1]", "http://192.168.1.18", "arm left", "-arm", "arm..left", "user@arm",
    ],
)  # fmt: skip
def test_other_spellings_are_refused_and_named(host):
    for key in ("right_host", "left_host", "push_host"):
        with pytest.raises(SiteError, match=f"^{key}: found '.*', expected ") as caught:
            Rm65Settings(**{key: host})
        assert f"found '{host}'" in str(caught.value)


def test_an_address_is_not_looked_up(name_server):
    assert addresses.resolve("right arm", "192.168.1.19", 1.0) == "192.168.1.19"
    assert name_server == []


def test_a_name_is_looked_up_once(name_server):
    assert addresses.resolve("right arm", "arm-left.lab.local", 20.0) == "127.0.0.2"
    assert name_server == ["arm-left.lab.local"]


def test_an_unknown_name_is_one_line_with_a_remedy(name_server):
    message = "right arm: the name 'nobody' has no IPv4 address here .*Write the address, such as 192.168.1.18$"
    with pytest.raises(RobotError, match=message):
        addresses.resolve("right arm", "nobody", 20.0)


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch):
    silent = threading.Event()  # its thread is left behind, as that of a real lookup is
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: silent.wait())
    with pytest.raises(RobotTimeoutError, match=r"'slow' was not looked up within 0\.05 s"):
        addresses.resolve("right arm", "slow", 0.05)


@pytest.mark.parametrize("pair", [("arm-right", "127.0.0.1"), ("Arm_Left", "arm-left.lab.local")])
def test_two_names_of_one_arm_are_refused_before_any_connection(name_server, pair):
    robot = Rm65Robot(Rm65Settings(right_host=pair[0], left_host=pair[1]))
    with pytest.raises(SiteError, match=f"'{pair[0]}' and '{pair[1]}' are both 127.0.0.., expected two arms"):
        robot.connect()
