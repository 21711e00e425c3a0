import dataclasses

import pytest

from realman.errors import SiteError
from realman.robots.cameras.settings import CameraSettings
from realman.robots.robot import InspectedRobot
from realman.robots.sim import task
from realman.station.site_config import SIM_SITE
from realman.station.site_config import Site
from realman.station.site_config import load_site
from realman.station.site_config import open_robot


def write(tmp_path, text: str):
    path = tmp_path / "site.toml"
    path.write_text(text)
    return path


def test_the_example_file_shows_every_default(repo_root):
    assert load_site(repo_root / "examples/realman/site.example.toml") == Site()


def test_an_empty_file_is_the_default_site(tmp_path):
    assert load_site(write(tmp_path, "")) == Site()


def test_values_are_read_and_whole_numbers_may_stand_for_floats(tmp_path):
    site = load_site(write(tmp_path, 'prompt = "fold"\n[server]\nport = 9000\n[safety]\nmax_joint_speed_deg_s = 30\n'))
    assert site.prompt == "fold"
    assert site.server.port == 9000
    assert site.safety.max_joint_speed_deg_s == 30.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[safety]\nmax_joint_sped_deg_s = 30",
            "unknown key 'safety.max_joint_sped_deg_s', did you mean 'safety.max_joint_speed",
        ),
        ("sever = 1", "unknown key 'sever', did you mean 'server'"),
        ("zzz = 1\nyyy = 2", "unknown key 'zzz'.*unknown key 'yyy'"),
        ("[server]\nport = 'http'", r"\[server\] port: found 'http', expected a whole number, 1 to 65535 \("),
        ("[server]\nport = true", r"\[server\] port: found True, expected a whole number, 1 to 65535 \("),
        ("[server]\nport = 0", r"site.toml: \[server\] port: found 0, expected 1 to 65535 \("),
        ("[server]\nreply_timeout_s = inf", r"\[server\] reply_timeout_s: found inf, expected 0.05 to 600 \("),
        ("server = 'here'", r"'server' is 'here', expected a table \[server\]"),
        ("robot = 'rm75'", "'robot' is 'rm75', expected one of 'sim', 'emulated', 'replay', 'rm65'"),
        ("[rm65]\nfollow = 'fast'", "'rm65.follow' is 'fast', expected one of 'low', 'high'"),
        (
            "[rm65.gripper]\nkind = 'eg2'\nrate = 3",
            "unknown key 'rm65.gripper.rate', did you mean 'rm65.gripper.rate_hz'",
        ),
        ("[rm65]\nright_host = '10.0.0.1'\nleft_host = '10.0.0.1'", "both arms have the address '10.0.0.1'"),
        ("[cameras.cam_hihg]\nkind = 'opencv'\ndevice = 0", "unknown camera 'cam_hihg'"),
        (
            "[cameras.cam_high]\nkind = 'opencv'\nserial = '1'",
            "kind = 'opencv' needs 'device' and does not accept 'serial'",
        ),
        ("[cameras.cam_high]\ndevice = 0", r"\[cameras.cam_high\] lacks kind, expected a value"),
        ("[cameras]\ncam_high = 3", r"'cameras.cam_high' is 3, expected a table \[cameras.cam_high\]"),
        ("robot = ", "cannot be read as TOML"),
        ("[safety]\njoint_margin_deg = -3", r"\[safety\] joint_margin_deg: found -3, expected 0 to 90 \("),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_remedy(tmp_path, text, message):
    with pytest.raises(SiteError, match=message) as caught:
        load_site(write(tmp_path, text))
    assert "site.toml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_example(tmp_path):
    with pytest.raises(SiteError, match=r"no such file. Copy .*site\.example\.toml"):
        load_site(tmp_path / "nowhere.toml")


REAL = """
robot = "rm65"
[rm65]
right_host = "10.0.0.19"
collision_stage = 4
[rm65.gripper]
kind = "ctag"
[cameras.cam_high]
kind = "realsense"
serial = "0123"
[cameras.cam_left_wrist]
kind = "opencv"
device = 0
"""


def test_a_real_site_is_read_and_makes_a_robot_that_is_not_connected_yet(tmp_path):
    site = load_site(write(tmp_path, REAL))
    assert site.rm65.gripper.kind == "ctag"
    assert site.rm65.collision_stage == 4
    assert (site.cameras["cam_high"].serial, site.cameras["cam_left_wrist"].device) == ("0123", 0)
    robot = open_robot(site)
    assert isinstance(robot, InspectedRobot)
    assert robot.preflight == []


def test_real_arms_need_cameras():
    with pytest.raises(SiteError, match=r"has no cameras. Add tables such as \[cameras.cam_high\]"):
        open_robot(Site(robot="rm65"))


def test_one_device_cannot_be_two_cameras():
    camera = CameraSettings(kind="opencv", device=0)
    with pytest.raises(SiteError, match="'cam_high' and 'cam_low' are both '0'"):
        open_robot(Site(robot="rm65", cameras={"cam_high": camera, "cam_low": camera}))


def test_the_simulated_site_asks_for_the_task_of_the_simulated_cell():
    assert SIM_SITE.prompt == task.TASK


def test_the_rate_of_each_robot_comes_from_its_table(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("[sim]\nfps = 30\n[rm65]\nfps = 25\n[replay]\npath = 'x.hdf5'\nfps = 20\n")
    site = load_site(path)
    rates = {name: open_robot(dataclasses.replace(site, robot=name)).fps for name in ("sim", "emulated", "replay")}
    assert rates == {"sim": 30.0, "emulated": 25.0, "replay": 20.0}
