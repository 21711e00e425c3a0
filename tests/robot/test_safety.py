import dataclasses

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from realman import spec
from realman.errors import RejectedError
from realman.errors import SiteError
from realman.safety import Limits
from realman.safety import SafetyLayer
from realman.safety import SafetySettings
from realman.safety import check_first_jump
from realman.safety import check_start
from realman.safety import limit_target

LIMITS = Limits.per_tick(SafetySettings(), fps=50)
JOINTS = list(spec.JOINT_DIMS)
EPS = 1e-9

# Far beyond what an arm can do: targets of a lost policy, and states read in degrees.
anywhere = hnp.arrays(np.float64, 14, elements=st.floats(-1000, 1000))
fractions = hnp.arrays(np.float64, 14, elements=st.floats(0, 1))


def in_range(fraction: np.ndarray) -> np.ndarray:
    return LIMITS.lower + fraction * (LIMITS.upper - LIMITS.lower)


@settings(max_examples=50)
@given(target=anywhere, previous=anywhere)
def test_a_tick_never_moves_further_than_its_step(target, previous):
    sent = limit_target(target, previous, LIMITS).target
    assert (np.abs(sent - previous) <= LIMITS.max_step + EPS).all()


@settings(max_examples=50)
@given(target=anywhere, fraction=fractions)
def test_from_inside_the_range_nothing_leaves_it(target, fraction):
    sent = limit_target(target, in_range(fraction), LIMITS).target
    assert (sent >= LIMITS.lower - EPS).all()
    assert (sent <= LIMITS.upper + EPS).all()


@settings(max_examples=50)
@given(target=anywhere, previous=anywhere)
def test_from_outside_the_range_a_tick_never_moves_further_out(target, previous):
    def distance(x):
        return np.maximum(np.maximum(LIMITS.lower - x, x - LIMITS.upper), 0)

    sent = limit_target(target, previous, LIMITS).target
    assert (distance(sent) <= distance(previous) + EPS).all()


@settings(max_examples=50)
@given(previous=fractions, step=hnp.arrays(np.float64, 14, elements=st.floats(-1, 1)))
def test_an_allowed_target_is_sent_unchanged(previous, step):
    start = in_range(previous)
    target = np.clip(start + 0.99 * step * LIMITS.max_step, LIMITS.lower, LIMITS.upper)
    limited = limit_target(target, start, LIMITS)
    np.testing.assert_array_equal(limited.target, target)
    assert not limited.over_range.any()
    assert not limited.over_speed.any()


@settings(max_examples=15)
@given(target=anywhere, fraction=fractions)
def test_repeating_a_target_reaches_its_nearest_allowed_position(target, fraction):
    nearest, position = np.clip(target, LIMITS.lower, LIMITS.upper), in_range(fraction)
    for _ in range(int(np.ceil(((LIMITS.upper - LIMITS.lower) / LIMITS.max_step).max())) + 1):
        position = limit_target(target, position, LIMITS).target
    np.testing.assert_allclose(position, nearest, atol=EPS)


@settings(max_examples=20)
@given(target=anywhere, previous=anywhere)
def test_the_callers_arrays_stay_as_they_are(target, previous):
    copies = target.copy(), previous.copy()
    limit_target(target, previous, LIMITS)
    np.testing.assert_array_equal(target, copies[0])
    np.testing.assert_array_equal(previous, copies[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(bad):
    target = np.zeros(14)
    target[9] = bad
    with pytest.raises(RejectedError, match=r"left_elbow \[9\]"):
        limit_target(target, np.zeros(14), LIMITS)


def test_the_vendors_speed_limits_a_generous_site():
    limits = Limits.per_tick(SafetySettings(max_joint_speed_deg_s=10_000), fps=50)
    np.testing.assert_allclose(limits.max_step[:6] * 50, spec.ARM_SPEED_RAD_S)
    np.testing.assert_allclose(limits.max_step[7:13] * 50, spec.ARM_SPEED_RAD_S)


def test_margins_shrink_the_joint_ranges_and_spare_the_grippers():
    limits = Limits.per_tick(SafetySettings(joint_margin_deg=5), fps=50)
    np.testing.assert_allclose(np.rad2deg((spec.UPPER - limits.upper)[JOINTS]), 5)
    np.testing.assert_allclose(np.rad2deg((limits.lower - spec.LOWER)[JOINTS]), 5)
    assert limits.upper[list(spec.GRIPPER_DIMS)].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_joint_speed_deg_s", 0.0),
        ("max_first_jump_deg", float("nan")),
        ("joint_margin_deg", -1.0),
        ("joint_margin_deg", 130.0),
        ("max_limit_ticks", 0),
        ("max_observation_age_ms", float("inf")),
    ],
)
def test_senseless_settings_are_refused_by_name(name, value):
    with pytest.raises(SiteError, match=name):
        SafetySettings(**{name: value})


def test_a_start_outside_the_joint_range_is_refused_with_its_angle():
    state = np.zeros(14)
    state[2], state[8] = np.deg2rad(140), np.deg2rad(-131)
    with pytest.raises(RejectedError, match=r"right_elbow at 140\.0 deg.*left_shoulder at -131\.0 deg"):
        check_start(state)


def test_a_first_target_far_away_is_refused_and_grippers_may_jump():
    state = np.zeros(14)
    grippers_only = state.copy()
    grippers_only[list(spec.GRIPPER_DIMS)] = 1
    check_first_jump(grippers_only, state, LIMITS)
    target = state.copy()
    target[4] = np.deg2rad(15.2)
    with pytest.raises(RejectedError, match=r"right_wrist_angle 15\.2 deg \(at most 15\.0 deg\)"):
        check_first_jump(target, state, LIMITS)


def test_the_layer_checks_the_jump_only_once_and_measures_steps_from_what_was_sent():
    layer = SafetyLayer(LIMITS, np.zeros(14))
    layer.sent(layer.check(np.zeros(14)))
    far = np.full(14, 1.0)
    first = layer.check(far)
    np.testing.assert_allclose(first, LIMITS.max_step)
    # The driver sent less than allowed: the next step starts there.
    layer.sent(first / 2)
    np.testing.assert_allclose(layer.check(far), 1.5 * LIMITS.max_step)


def test_the_layer_counts_what_it_changed():
    layer = SafetyLayer(LIMITS, np.zeros(14))
    beyond = np.zeros(14)
    beyond[6], beyond[13] = 1.01, -0.5
    layer.sent(layer.check(beyond))
    layer.sent(layer.check(np.zeros(14)))
    assert layer.range_clamps.nonzero()[0].tolist() == [6, 13]
    assert layer.speed_clamps[6] == 1
    assert layer.clamped_ticks == 1


def test_a_policy_that_stays_beyond_the_joint_range_is_stopped():
    limits = dataclasses.replace(LIMITS, max_limit_ticks=3, max_first_jump=100.0)
    layer = SafetyLayer(limits, np.zeros(14))
    lost = np.zeros(14)
    lost[1] = np.deg2rad(150)
    for _ in range(3):
        layer.sent(layer.check(lost))
    layer.sent(layer.check(np.zeros(14)))
    for _ in range(3):
        layer.sent(layer.check(lost))
    with pytest.raises(RejectedError, match=r"4 steps in a row \(right_shoulder\)"):
        layer.check(lost)
