"""No number of site.toml can switch a check off: each has a finite range, which holds for whatever a file says."""

from collections.abc import Iterator
import dataclasses
import functools
import math
from pathlib import Path
import re
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from openpi_client import ranges
from realman.errors import RobotTimeoutError
from realman.errors import SiteError
from realman.ranges import OnRealArms
from realman.robots.cameras.frozen import FrozenCheck
from realman.runtime.watchdogs import Watchdogs
from realman.station.site_config import Site
from realman.station.site_config import load_site


def tables(cls: type, place: str = "") -> Iterator[tuple[str, type]]:
    """Yield the place in the file of each settings class, and the class."""
    yield place, cls
    for name, hint in get_type_hints(cls).items():
        inner = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
        if inner is not None:
            entry = "cam_high" if get_origin(hint) is dict else ""
            yield from tables(inner, ".".join(filter(None, (place, name, entry))))


TABLES = dict(tables(Site))
NUMBERS = {
    (place, name): found
    for place, cls in TABLES.items()
    for name, hint in ranges.number_hints(cls).items()
    for found in [list(ranges.declared(hint))]
}
FIELDS = list(NUMBERS)
# What a table needs to be complete.
CAMERA = {"kind": "opencv", "device": 0}
BOX = {"lower_m": [-1.0, -1.0, -1.0], "upper_m": [1.0, 1.0, 1.0]}
COMPLETE = {"cameras.cam_high": CAMERA, "safety.right_box": BOX, "safety.left_box": BOX}
# What must change with a field, because the two have to fit together.
COMPANIONS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("rm65", "push_cycle"): {"rm65": {"max_state_age_s": 0.5}},
    ("rm65", "max_camera_age_s"): {"cameras.cam_high": {**CAMERA, "fps": 240}},
    ("rm65.gripper", "rate_hz"): {"rm65.gripper": {"max_age_s": 1.0}},
    ("rm65.gripper", "max_age_s"): {"rm65.gripper": {"rate_hz": 50.0}},
    ("rm65.gripper", "ctag_open_register"): {"rm65.gripper": {"ctag_closed_register": 70}},
    ("rm65.gripper", "ctag_closed_register"): {"rm65.gripper": {"ctag_open_register": 70}},
    ("cameras.cam_high", "fps"): {"cameras.cam_high": {"max_frozen_s": 10.0}, "rm65": {"max_camera_age_s": 2.0}},
    ("cameras.cam_high", "max_frozen_s"): {"cameras.cam_high": {"fps": 240}},
    ("safety.right_box", "lower_m"): {"safety.right_box": {"upper_m": [2.0, 2.0, 2.0]}},
    ("safety.right_box", "upper_m"): {"safety.right_box": {"lower_m": [-2.0, -2.0, -2.0]}},
    ("safety.left_box", "lower_m"): {"safety.left_box": {"upper_m": [2.0, 2.0, 2.0]}},
    ("safety.left_box", "upper_m"): {"safety.left_box": {"lower_m": [-2.0, -2.0, -2.0]}},
}


def as_toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool | str):
        return f'"{value}"' if isinstance(value, str) else str(value).lower()
    return str(value)


def site_text(robot: str, field: tuple[str, str], value: Any) -> str:
    place, name = field
    keys: dict[str, dict[str, Any]] = {"": {"robot": robot}, place: dict(COMPLETE.get(place, {}))}
    if not place:
        keys[""]["robot"] = robot
    if robot == "rm65":
        keys.setdefault("cameras.cam_high", dict(CAMERA))
    for table, values in COMPANIONS.get(field, {}).items():
        keys[table] = {**keys.get(table, {}), **values}
    # A field with several numbers gets the value as its last one.
    is_list = len(NUMBERS[field]) > 1
    keys[place][name] = [*COMPLETE[place][name][:-1], value] if is_list else value
    lines = []
    for table, values in sorted(keys.items()):
        lines += [f"[{table}]"] * bool(table) + [f"{key} = {as_toml(entry)}" for key, entry in values.items()]
    return "\n".join(lines) + "\n"


def load(folder: Path, robot: str, field: tuple[str, str], value: Any) -> Any:
    """Return what the site has at the field after reading a file that says `value`."""
    path = folder / "site.toml"
    path.write_text(site_text(robot, field, value))
    loaded = load_site(path)
    place, name = field
    table = functools.reduce(
        lambda at, key: at[key] if isinstance(at, dict) else getattr(at, key), filter(None, place.split(".")), loaded
    )
    found = getattr(table, name)
    return found[-1] if len(NUMBERS[field]) > 1 else found


def bounds(field: tuple[str, str], robot: str) -> tuple[type, ranges.Range]:
    number, found = NUMBERS[field][-1]
    narrow = [r for r in found if type(r) is OnRealArms]
    return number, (narrow[0] if narrow and robot == "rm65" else found[0])


def ids(part: tuple[str, str] | str) -> str:
    return part if isinstance(part, str) else ".".join(filter(None, part))


# Fields with a narrower range for real arms are tried with both ranges.
CASES = [(field, "sim") for field in FIELDS] + [
    (field, "rm65") for field in FIELDS if any(type(r) is OnRealArms for r in NUMBERS[field][-1][1])
]


def test_the_walk_reaches_every_table():
    expected = "safety safety.right_box safety.left_box server rm65 rm65.gripper cameras.cam_high sim replay"
    assert set(TABLES) == {"", *expected.split()}
    assert len(FIELDS) > 40


@pytest.mark.parametrize("field", FIELDS, ids=ids)
def test_every_number_has_a_finite_range_with_a_reason(field):
    for _, found in NUMBERS[field]:
        assert type(found[0]) is ranges.Range
        assert all(r.why for r in found)
        # What holds for real arms lies inside of what holds for all.
        assert all(found[0].low <= r.low <= r.high <= found[0].high for r in found)


@pytest.mark.parametrize(("field", "robot"), CASES, ids=ids)
def test_a_value_out_of_range_is_refused_in_one_line_with_place_value_and_range(field, robot, tmp_path):
    number, allowed = bounds(field, robot)
    low, high = allowed.low, allowed.high
    outside = [number(low - 1), number(high + 1), -1e300, 1e300, 10**30, -(10**30)]
    if number is float:
        outside += [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    outside += [value for value in (0, -1) if not low <= value <= high]
    place, name = field
    for value in (math.nan, math.inf, -math.inf, True, *outside, *([low + 0.5] if number is int else [])):
        with pytest.raises(SiteError) as caught:
            load(tmp_path, robot, field, value)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{tmp_path}/site.toml: {f'[{place}] ' if place else ''}{name}")
        assert f": found {ranges.in_words(value)}, expected " in message
        # A number that no robot may have is refused with the wider range.
        assert any(str(r) in message for r in NUMBERS[field][-1][1])


@pytest.mark.parametrize(("field", "robot"), CASES, ids=ids)
@settings(max_examples=5)
@given(data=st.data())
def test_a_value_in_range_is_taken_exactly(field, robot, data, tmp_path_factory):
    number, allowed = bounds(field, robot)
    ends = st.sampled_from([number(allowed.low), number(allowed.high)])
    inside = (
        st.integers(math.ceil(allowed.low), math.floor(allowed.high))
        if number is int
        else st.floats(allowed.low, allowed.high)
    )
    value = data.draw(ends | inside)
    if field[1].startswith("ctag_") and value == 70:
        value = 71
    if (field[1] == "lower_m" and value == 2) or (field[1] == "upper_m" and value == -2):
        value = 0.0
    found = load(tmp_path_factory.getbasetemp(), robot, field, value)
    assert (found, type(found)) == (value, number)


def test_the_document_lists_the_ranges_of_real_arms(repo_root):
    table = re.findall(r"^\| `\[(\S+)\]` `(\S+)` \| (.+) \| (.+) \|$", (repo_root / "docs/robot.md").read_text(), re.M)
    listed = {(place, name): words for place, name, *words in table}
    assert listed == {
        field: [re.sub(r" \(.*", "", str(r)) for r in (narrow, wide)]
        for field in {field for field, robot in CASES if robot == "rm65"}
        for wide, narrow in [NUMBERS[field][-1][1]]
    }


@pytest.mark.parametrize("field", FIELDS, ids=ids)
def test_the_class_itself_refuses_what_is_not_finite(field, tmp_path):
    # The settings of a program that reads no file.
    place, name = field
    cls = TABLES[place]
    complete = {key: tuple(v) if isinstance(v, list) else v for key, v in COMPLETE.get(place, {}).items()}
    if NUMBERS[field][-1][0] is float:
        value = (0.0, 0.0, math.nan) if len(NUMBERS[field]) > 1 else math.nan
        with pytest.raises(SiteError, match=rf"^{name}(\[2\])?: found nan, expected "):
            cls(**{**complete, name: value})
    else:
        with pytest.raises(SiteError, match=rf"^{name}: found {-(10**12)}, expected "):
            cls(**{**complete, name: -(10**12)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rm65]\npush_cycle = 30", r"\[rm65\] max_state_age_s: found 0\.1, expected at least 0\.15, the time between"),
        ("[rm65]\nfps = 150.0\nfollow = 'high'", r"\[rm65\] high_follow_rate_hz: found 100\.0, expected at least 150"),
        (
            "[rm65.gripper]\nrate_hz = 5.0\nmax_age_s = 0.1",
            r"\[rm65\.gripper\] max_age_s: found 0\.1, expected at least 0\.2",
        ),
        (
            "[cameras.cam_low]\nkind = 'opencv'\ndevice = 1\nfps = 1",
            r"\[cameras\.cam_low\] max_frozen_s: found 1\.0, expected at least 2,",
        ),
        (
            "robot = 'rm65'\n[cameras.cam_low]\nkind = 'opencv'\ndevice = 1\nfps = 2",
            r"\[rm65\] max_camera_age_s: found 0\.2, expected at least 0\.5, .* of \[cameras\.cam_low\]",
        ),
        (
            "[safety.left_box]\nlower_m = [0.1, 0.0, 0.0]\nupper_m = [0.1, 1.0, 1.0]",
            r"\[safety\.left_box\] workspace box: x is 0\.1\.\.0\.1 m",
        ),
        (
            "[rm65]\nfps = nan\npush_cycle = 0",
            r"\[rm65\] fps: found nan, expected 1 to 200 \(.*\)\. push_cycle: found 0, expected 1 to 40 \(",
        ),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(text, message, tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(SiteError, match=message) as caught:
        load_site(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [f"[server]\nport = 1{'0' * 400}", f"[safety]\nmax_joint_speed_deg_s = 1{'0' * 5000}", "a = " + "[" * 9000],
    ids=["400 digits", "5000 digits", "nesting"],
)
def test_what_no_computer_can_read_is_refused_in_one_line(text, tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(SiteError, match=r"site\.toml: ") as failure:
        load_site(path)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 400


def test_a_mark_of_the_encoding_does_not_hide_the_first_key(tmp_path):
    path = tmp_path / "site.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b'execution = "blend"')
    assert load_site(path).execution == "blend"


def test_a_check_whose_limit_or_age_is_not_a_number_fails():
    # Programs may make these checks without settings.
    for check in (
        Watchdogs(max_observation_age_s=math.nan).check_observation_age,
        Watchdogs(max_policy_age_s=math.nan).check_policy_age,
        Watchdogs(max_overrun_s=math.nan).check_lateness,
    ):
        with pytest.raises(RobotTimeoutError, match="expected at most nan ms"):
            check(0.0)
    with pytest.raises(RobotTimeoutError, match="nan ms old"):
        Watchdogs(max_observation_age_s=1.0).check_observation_age(math.nan)


def test_a_frozen_camera_without_a_limit_that_is_a_number_is_refused():
    class Still:
        names = ("cam_high",)

        def open(self) -> None: ...

        def grab(self) -> dict[str, np.ndarray]:
            return {"cam_high": np.zeros((2, 2, 3), np.uint8)}

        def close(self) -> None: ...

    camera = FrozenCheck(Still(), math.nan)
    camera.grab()
    with pytest.raises(RobotTimeoutError, match="has not changed"):
        camera.grab()
