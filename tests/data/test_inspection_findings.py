"""Each way to spoil a dataset is found, graded and answered with its remedy. Sound data raises no alarm."""

from collections.abc import Callable
import copy
import dataclasses
import functools
import json
from pathlib import Path
import re
from typing import Any

import h5py
import numpy as np
import pytest

from realman import spec
from realman.data.inspection.diagnosis import diagnose
from realman.data.inspection.inspected_data import open_data
from realman.data.inspection.measure import measure_all
from realman.data.inspection.norm_stats import StateStats
from realman.data.inspection.norm_stats import read_state_stats
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey
from realman.data.raw import RawOptions
from realman.data.raw.options import parse_camera_map
from realman.errors import DatasetError
from realman.errors import EpisodeError

FPS = 50
NUM_FRAMES = 120
LAG_FRAMES = 3
RIGHT, LEFT = slice(0, 7), slice(7, 14)
JOINTS, GRIPPERS = list(spec.JOINT_DIMS), list(spec.GRIPPER_DIMS)
SWAPPED = np.r_[7:14, 0:7]


@dataclasses.dataclass
class Recorded:
    """One recording before it is written; faults change it in place."""

    state: np.ndarray
    action: np.ndarray
    velocity: np.ndarray
    images: dict[str, np.ndarray]
    attributes: dict[str, Any]


def _ramp(t: np.ndarray, start: float, stop: float) -> np.ndarray:
    x = np.clip((t - start) / (stop - start), 0, 1)
    return x * x * (3 - 2 * x)


def _sound(seed: int) -> Recorded:
    return copy.deepcopy(_sound_once(seed))


@functools.cache
def _sound_once(seed: int) -> Recorded:
    """The right arm reaches and grasps, then the left one reaches; states follow 60 ms later, and the object blocks the right gripper."""
    rng = np.random.default_rng(seed)
    t = np.arange(-LAG_FRAMES, NUM_FRAMES) / NUM_FRAMES
    action = np.empty((len(t), spec.NUM_DIMS))
    for arm, start in ((RIGHT, 0.0), (LEFT, 0.45)):
        reach = _ramp(t, start, start + 0.25) - 0.6 * _ramp(t, start + 0.3, start + 0.5)
        action[:, arm] = rng.uniform(0.2, 0.5, 7) + reach[:, None] * rng.uniform(0.3, 0.7, 7)
        action[:, arm][:, 6] = 0.95 - 0.75 * _ramp(t, start + 0.2, start + 0.3)
    state = action[:-LAG_FRAMES].copy()
    state[:, 6] = np.maximum(state[:, 6], 0.5)
    action = action[LAG_FRAMES:]
    velocity = np.gradient(state, axis=0) * FPS
    return Recorded(state, action, velocity, _images(state), {"fps": FPS, "language_instruction": "stack the cups"})


def _images(state: np.ndarray) -> dict[str, np.ndarray]:
    """Wrist images move with their arm; in the two others the right arm moves the right half, as seen from behind the robot."""
    y, x = np.mgrid[:48, :64]
    way = {side: state[:, arm][:, :6].sum(axis=1) for side, arm in (("right", RIGHT), ("left", LEFT))}
    halves = np.where(x[None] < 32, way["left"][:, None, None], way["right"][:, None, None])
    waves = {
        "cam_high": np.sin(0.25 * x + 0.1 * y + 2 * halves),
        "cam_low": np.sin(0.2 * x + 0.15 * y + 2 * halves),
        "cam_left_wrist": np.sin(0.3 * x + 0.1 * y + 4 * way["left"][:, None, None]),
        "cam_right_wrist": np.sin(0.3 * y + 0.1 * x + 4 * way["right"][:, None, None]),
    }
    return {name: np.repeat((128 + 100 * wave).astype(np.uint8)[..., None], 3, axis=-1) for name, wave in waves.items()}


def _write(path: Path, recorded: Recorded) -> None:
    with h5py.File(path, "w") as file:
        file["observations/qpos"] = recorded.state
        file["action"] = recorded.action
        file["observations/qvel"] = recorded.velocity
        for name, frames in recorded.images.items():
            file[f"observations/images/{name}"] = frames
        file.attrs.update(recorded.attributes)


Fault = Callable[[Recorded], None]


def _record(folder: Path, fault: Fault | None = None, number: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        recorded = _sound(i)
        if fault is not None:
            fault(recorded)
        _write(folder / f"episode_{i}.hdf5", recorded)
    return folder


def _survey(data: Path, options: RawOptions | None = None, **changes: Any) -> Survey:
    data = open_data(data, options or RawOptions())
    episodes = tuple(measure_all(data, spec.CAMERAS, workers=1))
    survey = Survey(data, spec.CAMERAS, "unknown", None, episodes)
    return dataclasses.replace(survey, **changes)


def _alarms(survey: Survey) -> list[Finding]:
    return [f for f in diagnose(survey) if f.grade != "note"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _record(tmp_path_factory.mktemp("sound"))


def test_sound_recordings_raise_no_alarm(sound: Path) -> None:
    survey = _survey(sound)
    assert _alarms(survey) == []
    assert survey.lag_s == LAG_FRAMES / FPS


def test_sound_recordings_in_other_units_raise_no_alarm_when_the_options_say_so(tmp_path: Path) -> None:
    def other_units(r: Recorded) -> None:
        for values in (r.state, r.action, r.velocity):
            values[:, JOINTS] = np.rad2deg(values[:, JOINTS])
            values[:, GRIPPERS] *= 1000
            values[:] = values[:, SWAPPED]

    options = RawOptions(angle_unit="deg", gripper_range=(0, 1000), raw_arm_order="left_right")
    assert _alarms(_survey(_record(tmp_path, other_units), options)) == []


# ---- faults that change every episode ----------------------------------------------------------------------------------


def _degrees(r: Recorded) -> None:
    for values in (r.state, r.action, r.velocity):
        values[:, JOINTS] = np.rad2deg(values[:, JOINTS])


def _per_mille(r: Recorded) -> None:
    r.state[:, GRIPPERS] *= 1000
    r.action[:, GRIPPERS] *= 1000


def _meters(r: Recorded) -> None:
    r.state[:, GRIPPERS] *= 0.07
    r.action[:, GRIPPERS] *= 0.07


def _inverted(r: Recorded) -> None:
    r.state[:, GRIPPERS] = 1 - r.state[:, GRIPPERS]
    r.action[:, GRIPPERS] = 1 - r.action[:, GRIPPERS]


def _arms(r: Recorded) -> None:
    for values in (r.state, r.action, r.velocity):
        values[:] = values[:, SWAPPED]


def _action_arms(r: Recorded) -> None:
    r.state[:, :6] += 0.6
    r.action[:, :6] += 0.6
    r.action[:] = r.action[:, SWAPPED]


def _wrists(r: Recorded) -> None:
    left, right = r.images["cam_left_wrist"], r.images["cam_right_wrist"]
    r.images.update(cam_left_wrist=right, cam_right_wrist=left)


def _one_wrist_twice(r: Recorded) -> None:
    r.images["cam_left_wrist"] = r.images["cam_right_wrist"][:, ::-1]


def _deltas(r: Recorded) -> None:
    r.action[:, JOINTS] -= r.state[:, JOINTS]


def _copies(r: Recorded) -> None:
    r.action[:] = r.state


def _early(r: Recorded) -> None:
    r.action[:] = np.concatenate([r.state[:1].repeat(5, axis=0), r.state[:-5]])


def _late(r: Recorded) -> None:
    r.state[:] = np.concatenate([r.state[:1].repeat(20, axis=0), r.state[:-20]])
    r.velocity[:] = np.gradient(r.state, axis=0) * FPS


def _dead_joint(r: Recorded) -> None:
    r.state[:, 2] = r.action[:, 2] = 0.3


def _dead_sensor(r: Recorded) -> None:
    r.state[:, 13] = 0.0


def _dead_arms(r: Recorded) -> None:
    r.state[:] = r.action[:] = 0.4
    r.velocity[:] = 0


def _black(r: Recorded) -> None:
    r.images["cam_low"][:] = 2


def _flicker(r: Recorded) -> None:
    r.images["cam_high"][60:70] = 0


def _frozen(r: Recorded) -> None:
    r.images["cam_left_wrist"][:] = r.images["cam_left_wrist"][0]


def _stuck(r: Recorded) -> None:
    r.images["cam_right_wrist"][:40] = r.images["cam_right_wrist"][0]


def _no_camera(r: Recorded) -> None:
    del r.images["cam_low"]


def _no_rate(r: Recorded) -> None:
    del r.attributes["fps"]


def _wrong_rate(r: Recorded) -> None:
    r.attributes["fps"] = 30


def _no_task(r: Recorded) -> None:
    del r.attributes["language_instruction"]


def _glitch(r: Recorded) -> None:
    r.state[50, 3] += 0.3


def _twitch(r: Recorded) -> None:
    r.state[50, 3] += 0.06  # slower than the joint can move, but no joint starts and stops within two frames


def _hardly_moves(r: Recorded) -> None:
    for values in (r.state, r.action):
        values[:, 5] = 0.3 + 0.001 * np.sin(np.arange(NUM_FRAMES))
        values[60, 5] += 0.02


def _around_zero(r: Recorded) -> None:
    r.state[:, GRIPPERS] = 2 * r.state[:, GRIPPERS] - 1
    r.action[:, GRIPPERS] = 2 * r.action[:, GRIPPERS] - 1


def _command_jump(r: Recorded) -> None:
    r.action[70:, 8] -= 0.5


def _beyond_limit(r: Recorded) -> None:
    r.state[:, 4] += 2.2
    r.action[:, 4] += 2.2


FAULTS: tuple[tuple[Fault, str, str, str], ...] = (
    (_degrees, "error", "angle-unit", "--angle-unit deg"),
    (_per_mille, "error", "gripper-range", "--gripper-range 0:1000"),
    (_around_zero, "error", "gripper-range", "--gripper-range -0.6:1"),
    (_twitch, "warning", "jerk", "--episodes"),
    (_hardly_moves, "warning", "tiny-span", "pi0 config"),
    (_meters, "warning", "gripper-range", "--gripper-range 0:0.0665"),
    (_inverted, "warning", "gripper-direction", "--gripper-range 1:0"),
    (_arms, "error", "swapped-sides", "--raw-arm-order left_right"),
    (_action_arms, "error", "action-arm-order", "swap the two halves of /action"),
    (_wrists, "error", "swapped-sides", "--camera-map cam_left_wrist=cam_right_wrist cam_right_wrist=cam_left_wrist"),
    (_one_wrist_twice, "error", "wrist-cameras", "by serial number"),
    (_deltas, "error", "delta-action", "absolute joint targets"),
    (_copies, "warning", "action-is-state", "the next state as the action"),
    (_early, "warning", "lag", "the command sent right after it"),
    (_late, "warning", "lag", "queues and clocks"),
    (_dead_joint, "warning", "constant", "check the recorder"),
    (_dead_sensor, "warning", "constant", "reads these sensors"),
    (_dead_arms, "error", "constant", "observations/qpos"),
    (_black, "error", "blank-picture", "--cameras"),
    (_flicker, "warning", "blank-picture", "--episodes"),
    (_frozen, "error", "frozen-camera", "--cameras"),
    (_stuck, "warning", "frozen-camera", "--episodes"),
    (_no_camera, "error", "camera-missing", "--cameras cam_high cam_left_wrist cam_right_wrist"),
    (_no_rate, "warning", "fps", "--fps"),
    (_wrong_rate, "warning", "velocity", "50 fps"),
    (_no_task, "error", "prompt", "--task"),
    (_glitch, "warning", "state-jump", "--episodes"),
    (_command_jump, "warning", "action-jump", "--episodes"),
    (_beyond_limit, "error", "joint-limit", "--skip-bad"),
)


@pytest.mark.parametrize(("fault", "grade", "check", "remedy"), FAULTS, ids=[f[0].__name__[1:] for f in FAULTS])
def test_a_fault_is_found_with_its_grade_and_remedy(
    fault: Fault, grade: str, check: str, remedy: str, tmp_path: Path
) -> None:
    alarms = _alarms(_survey(_record(tmp_path, fault)))
    assert [(f.grade, f.check) for f in alarms] == [(grade, check)], alarms
    assert remedy in alarms[0].remedy


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        (_arms, "the arms are swapped: convert with --raw-arm-order left_right"),
        (_wrists, "the wrist cameras are swapped"),
    ],
)
def test_the_place_of_the_high_camera_distinguishes_swapped_arms_from_swapped_cameras(
    fault: Fault, remedy: str, tmp_path: Path
) -> None:
    survey = _survey(_record(tmp_path, fault), high_view="from_robot")
    (finding,) = (f for f in diagnose(survey) if f.check == "swapped-sides")
    assert finding.remedy.startswith(remedy)


def test_the_place_of_the_high_camera_shows_that_arms_and_cameras_are_both_swapped(tmp_path: Path, sound: Path) -> None:
    def both(r: Recorded) -> None:
        _arms(r)
        _wrists(r)

    folder = _record(tmp_path, both)
    assert _alarms(_survey(folder)) == []  # consistent in itself: nothing else can show it
    (finding,) = _alarms(_survey(folder, high_view="from_robot"))
    assert finding.check == "swapped-sides"
    assert "both swapped" in finding.remedy
    assert _alarms(_survey(sound, high_view="from_robot")) == []


def test_the_map_that_the_remedy_names_gives_each_wrist_camera_its_own_name(tmp_path: Path) -> None:
    folder = _record(tmp_path, _wrists)
    (finding,) = _alarms(_survey(folder))
    camera_map = parse_camera_map(re.findall(r"\w+=\w+", finding.remedy))
    assert _alarms(_survey(folder, RawOptions(camera_map=camera_map))) == []


def _left_arm_rests(r: Recorded, *, watching: float) -> None:
    """Only the right arm works; the camera on the resting left wrist sees a little of it."""
    for values in (r.state, r.action):
        values[:, LEFT] = values[0, LEFT]
    r.velocity[:, LEFT] = 0
    still, moving = r.images["cam_left_wrist"][:1], r.images["cam_right_wrist"]
    r.images["cam_left_wrist"] = (still * (1 - watching) + moving * watching).astype(np.uint8)


def test_a_camera_on_a_resting_arm_may_watch_the_other_arm(tmp_path: Path) -> None:
    survey = _survey(_record(tmp_path, functools.partial(_left_arm_rests, watching=0.2)))
    assert survey.arm_views["cam_left_wrist"].right > 0.5
    assert _alarms(survey) == []


def test_swapped_wrist_cameras_are_found_when_only_one_arm_works(tmp_path: Path) -> None:
    def swapped(r: Recorded) -> None:
        _left_arm_rests(r, watching=0.2)
        _wrists(r)

    assert [f.check for f in _alarms(_survey(_record(tmp_path, swapped)))] == ["swapped-sides"]


def test_arms_swapped_by_the_option_are_swapped_back_by_the_remedy(sound: Path) -> None:
    (finding,) = _alarms(_survey(sound, RawOptions(raw_arm_order="left_right")))
    assert "--raw-arm-order right_left" in finding.remedy


def test_radians_read_as_degrees_are_found(sound: Path) -> None:
    found = _alarms(_survey(sound, RawOptions(angle_unit="deg")))
    assert ("error", "angle-unit", "leave out --angle-unit deg") in {(f.grade, f.check, f.remedy) for f in found}


# ---- faults of single episodes -----------------------------------------------------------------------------------------


def _spoil(folder: Path, number: int, fault: Fault) -> None:
    recorded = _sound(number)
    fault(recorded)
    _write(folder / f"episode_{number}.hdf5", recorded)


def _nan(r: Recorded) -> None:
    r.action[7, 2] = np.nan


def _resized(r: Recorded) -> None:
    r.images["cam_high"] = r.images["cam_high"][:, ::2, ::2]


def _other_spelling(r: Recorded) -> None:
    r.attributes["language_instruction"] = "Stack the cups."


def _short(r: Recorded) -> None:
    r.state, r.action, r.velocity = r.state[:20], r.action[:20], r.velocity[:20]
    r.images = {name: frames[:20] for name, frames in r.images.items()}


def _other_rate(r: Recorded) -> None:
    r.attributes["fps"] = 49


@pytest.mark.parametrize(
    ("fault", "grade", "check"),
    [
        (_nan, "error", "not-finite"),
        (_resized, "error", "camera-size"),
        (_no_camera, "error", "camera-missing"),
        (_other_spelling, "warning", "prompt"),
        (_short, "warning", "length"),
        (_other_rate, "error", "fps"),
    ],
)
def test_a_fault_of_one_episode_is_found(fault: Fault, grade: str, check: str, tmp_path: Path) -> None:
    folder = _record(tmp_path, number=5)
    _spoil(folder, 3, fault)
    (finding,) = _alarms(_survey(folder))
    assert (finding.grade, finding.check) == (grade, check)
    assert finding.episodes in ((), ("episode_3.hdf5",))


def test_a_cut_off_recording_is_named_and_the_others_are_still_judged(tmp_path: Path) -> None:
    folder = _record(tmp_path)
    damaged = folder / "episode_1.hdf5"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    survey = _survey(folder)
    (finding,) = _alarms(survey)
    assert (finding.grade, finding.check, finding.episodes) == ("error", "unreadable", ("episode_1.hdf5",))
    assert "episode_1.hdf5" in finding.found
    assert len(survey.readable) == 2


def test_a_folder_of_nothing_but_damage_is_reported(tmp_path: Path) -> None:
    (tmp_path / "episode_0.hdf5").write_bytes(b"nothing")
    (finding,) = _alarms(_survey(tmp_path))
    assert finding.check == "unreadable"


def test_states_outside_the_statistics_of_a_training_run_are_reported(sound: Path) -> None:
    q01, q99 = _survey(sound).state_range
    fitting = StateStats(Path("norm_stats.json"), q01 - 0.01, q99 + 0.01)
    assert _alarms(_survey(sound, norm_stats=fitting)) == []
    (finding,) = _alarms(_survey(sound, norm_stats=dataclasses.replace(fitting, q99=fitting.q99 - 0.3)))
    assert (finding.grade, finding.check) == ("warning", "clipped-state")


def test_statistics_are_read_in_the_models_layout_left_arm_first(tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    stored = {"q01": [*range(14)], "q99": [*range(1, 15)]}
    path.write_text(json.dumps({"norm_stats": {"state": stored}}))
    stats = read_state_stats(tmp_path)
    assert stats.q01.tolist() == [*range(7, 14), *range(7)]
    assert (stats.q99 - stats.q01 == 1).all()
    path.write_text("{}")
    with pytest.raises(DatasetError, match="found no quantiles of the state"):
        read_state_stats(path)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no recordings"):
        open_data(tmp_path, RawOptions())
