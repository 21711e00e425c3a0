import pytest

from realman.errors import SiteError
from realman.sim import task
from realman.site_config import SIM_SITE
from realman.site_config import Site
from realman.site_config import load_site
from realman.site_config import open_robot


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
        ("[server]\nport = 'http'", "'server.port' is 'http'; expected int"),
        ("[server]\nport = true", "'server.port' is True; expected int"),
        ("[server]\nport = 0", "'port' is 0; expected 1..65535"),
        ("[server]\nreply_timeout_s = inf", "'reply_timeout_s' is inf"),
        ("server = 'here'", r"'server' is 'here'; expected a table \[server\]"),
        ("robot = 'rm75'", "'robot' is 'rm75'; expected one of sim, rm65"),
        ("robot = ", "cannot be read as TOML"),
        ("[safety]\njoint_margin_deg = -3", "'joint_margin_deg' is -3"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_remedy(tmp_path, text, message):
    with pytest.raises(SiteError, match=message) as caught:
        load_site(write(tmp_path, text))
    assert "site.toml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_example(tmp_path):
    with pytest.raises(SiteError, match=r"no such file; copy .*site\.example\.toml"):
        load_site(tmp_path / "nowhere.toml")


def test_real_arms_are_not_available_yet_and_say_so():
    with pytest.raises(SiteError, match="'rm65' is not available yet in this version"):
        open_robot(Site(robot="rm65"))


def test_the_simulated_site_asks_for_the_task_of_the_simulated_cell():
    assert SIM_SITE.prompt == task.TASK
