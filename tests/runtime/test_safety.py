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
from realman.runtime.safety import CommandedMotion
from realman.runtime.safety import Limits
from realman.runtime.safety import SafetyLayer
from realman.runtime.safety import SafetySettings
from realman.runtime.safety import check_first_jump
from realman.runtime.safety import check_start
from realman.runtime.safety import limit_target
from realman.runtime.workspace import Box

LIMITS = Limits.per_tick(SafetySettings(), fps=50)
JOINTS = list(spec.JOINT_DIMS)
EPS = 1e-9

# Far beyond what an arm can do: targets of a lost policy, and states read in degrees.
anywhere = hnp.arrays(np.float64, 14, elements=st.floats(-1000, 1000))
fractions = hnp.arrays(np.float64, 14, elements=st.floats(0, 1))


def in_range(fraction: np.ndarray) -> np.ndarray:
    return LIMITS.lower + fraction * (LIMITS.upper - LIMITS.lower)


def follow(targets: np.ndarray, start: np.ndarray, limits: Limits = LIMITS) -> np.ndarray:
    """Return what is sent for a stream of targets, from rest at `start`.

    The first row is the start.
    """
    motion, sent = CommandedMotion.at_rest(start), [start]
    for target in targets:
        position = limit_target(target, motion, limits).target
        motion = CommandedMotion(position, position - motion.position, target)
        sent.append(position)
    return np.array(sent)


@settings(max_examples=50)
@given(target=anywhere, previous=anywhere)
def test_a_tick_never_moves_further_than_its_step(target, previous):
    sent = limit_target(target, CommandedMotion.at_rest(previous), LIMITS).target
    assert (np.abs(sent - previous) <= LIMITS.max_step + EPS).all()


@settings(max_examples=40)
@given(targets=hnp.arrays(np.float64, (25, 14), elements=st.floats(-1000, 1000)), fraction=fractions)
def test_from_rest_inside_the_range_no_stream_breaks_range_speed_or_acceleration(targets, fraction):
    sent = follow(targets, in_range(fraction))
    steps = np.diff(sent, axis=0, prepend=sent[:1])
    assert (sent >= LIMITS.lower - EPS).all()
    assert (sent <= LIMITS.upper + EPS).all()
    assert (np.abs(steps) <= LIMITS.max_step + EPS).all()
    assert (np.abs(np.diff(steps, axis=0)) <= LIMITS.max_step_change + EPS).all()


@settings(max_examples=40)
@given(target=anywhere, previous=anywhere, step=hnp.arrays(np.float64, 14, elements=st.floats(-0.1, 0.1)))
def test_from_outside_the_range_a_tick_never_moves_further_out(target, previous, step):
    def distance(x):
        return np.maximum(np.maximum(LIMITS.lower - x, x - LIMITS.upper), 0)

    sent = limit_target(target, CommandedMotion(previous, step, target), LIMITS).target
    assert (distance(sent) <= distance(previous) + EPS).all()


@settings(max_examples=40)
@given(
    fraction=fractions,
    changes=hnp.arrays(np.float64, (40, 14), elements=st.floats(-1, 1)),
)
def test_a_stream_inside_all_limits_is_sent_unchanged(fraction, changes):
    # Any stream that the limits themselves have made is one.
    wild = in_range(fraction) + np.cumsum(changes, axis=0)
    allowed = follow(wild, in_range(fraction))
    np.testing.assert_allclose(follow(allowed[1:], allowed[0]), allowed, atol=1e-7)


@settings(max_examples=15)
@given(target=anywhere, fraction=fractions)
def test_repeating_a_target_reaches_its_nearest_allowed_position_without_passing_it(target, fraction):
    nearest, start = np.clip(target, LIMITS.lower, LIMITS.upper), in_range(fraction)
    num_steps = int(np.ceil(((LIMITS.upper - LIMITS.lower) / LIMITS.max_step).max())) + 30
    # The first look at the target is of one that stands, not of one that has just jumped there.
    motion, sent = CommandedMotion(start, np.zeros(14), target), []
    for _ in range(num_steps):
        position = limit_target(target, motion, LIMITS).target
        motion = CommandedMotion(position, position - motion.position, target)
        sent.append(position)
    np.testing.assert_allclose(sent[-1], nearest, atol=EPS)
    beyond = (np.array(sent) - nearest) * np.sign(nearest - start)
    assert (beyond <= EPS).all()


@settings(max_examples=20)
@given(jump=st.floats(-0.5, 0.5), speed=st.floats(-1, 1))
def test_a_target_that_jumps_and_then_stands_is_met_and_kept(jump, speed):
    run_up = 0.5 * speed * LIMITS.max_step * np.arange(1, 31)[:, None]
    stands = np.repeat(run_up[-1:] + jump * np.isin(np.arange(14), JOINTS), 120, axis=0)
    sent = follow(np.concatenate([run_up, stands]), np.zeros(14))
    reached = np.clip(stands[0], LIMITS.lower, LIMITS.upper)
    np.testing.assert_allclose(sent[-20:], np.tile(reached, (20, 1)), atol=EPS)


@settings(max_examples=20)
@given(target=anywhere, previous=anywhere)
def test_the_callers_arrays_stay_as_they_are(target, previous):
    motion = CommandedMotion.at_rest(previous)
    copies = target.copy(), previous.copy()
    limit_target(target, motion, LIMITS)
    np.testing.assert_array_equal(target, copies[0])
    np.testing.assert_array_equal(previous, copies[1])
    np.testing.assert_array_equal(motion.position, copies[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(bad):
    target = np.zeros(14)
    target[9] = bad
    with pytest.raises(RejectedError, match=r"left_elbow \[9\]"):
        limit_target(target, CommandedMotion.at_rest(np.zeros(14)), LIMITS)


def test_the_vendors_speed_limits_a_generous_site():
    limits = Limits.per_tick(SafetySettings(max_joint_speed_deg_s=225), fps=50)
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
    limits = Limits.per_tick(SafetySettings(max_joint_acceleration_deg_s2=1e6), fps=50)
    layer = SafetyLayer(limits, np.zeros(14))
    layer.note_sent(layer.check(np.zeros(14)))
    far = np.full(14, 1.0)
    first = layer.check(far)
    np.testing.assert_allclose(first, limits.max_step)
    # The driver sent less than allowed: the next step starts there.
    layer.note_sent(first / 2)
    np.testing.assert_allclose(layer.check(far), 1.5 * limits.max_step)


def test_after_a_pause_the_layer_starts_from_rest():
    layer = SafetyLayer(LIMITS, np.zeros(14))
    for k in range(1, 30):
        layer.note_sent(layer.check(0.5 * LIMITS.max_step * k))
    moving = layer.check(0.5 * LIMITS.max_step * 30)
    layer.note_hold()
    held_at = 0.5 * LIMITS.max_step * 29
    after = layer.check(held_at + LIMITS.max_step)
    assert (moving - held_at)[0] == pytest.approx(0.5 * LIMITS.max_step[0])
    np.testing.assert_array_less((after - held_at)[JOINTS], LIMITS.max_step_change[JOINTS] + EPS)


BOX = Box(lower_m=(-1.0, -1.0, 0.1), upper_m=(1.0, 1.0, 1.0))


def test_a_tool_that_would_leave_its_box_is_refused_by_arm_and_axis():
    limits = Limits.per_tick(SafetySettings(left_box=BOX, max_first_jump_deg=360), fps=50)
    down = np.zeros(14)
    # The shoulder bends the left arm over until it points at the table.
    down[8] = np.deg2rad(125)

    def bend(layer: SafetyLayer, target: np.ndarray) -> None:
        for _ in range(200):
            layer.note_sent(layer.check(target))

    with pytest.raises(RejectedError, match=r"left arm: the tool would be outside its workspace box: z = 0\.0[89]\d m"):
        bend(SafetyLayer(limits, np.zeros(14)), down)
    # The right arm has no box.
    bend(SafetyLayer(limits, np.zeros(14)), np.roll(down, 7))


def test_a_start_outside_the_box_is_refused():
    box = dataclasses.replace(BOX, upper_m=(1.0, 1.0, 0.5))
    with pytest.raises(RejectedError, match=r"right arm: .* z = 0\.851 m \(box 0\.1\.\.0\.5\)"):
        SafetyLayer(Limits.per_tick(SafetySettings(right_box=box), fps=50), np.zeros(14))


def test_the_length_of_the_tool_counts():
    assert dataclasses.replace(BOX, tool_length_m=0.2).tip_m(np.zeros(6))[2] == pytest.approx(0.8505 + 0.2)


def test_a_box_inside_out_is_refused():
    with pytest.raises(SiteError, match=r"z is 0\.5\.\.0\.1 m"):
        Box((0.0, 0.0, 0.5), (1.0, 1.0, 0.1))


def test_the_layer_counts_what_it_changed():
    layer = SafetyLayer(LIMITS, np.zeros(14))
    beyond = np.zeros(14)
    beyond[6], beyond[13] = 1.01, -0.5
    layer.note_sent(layer.check(beyond))
    layer.note_sent(layer.check(np.zeros(14)))
    assert layer.range_clamps.nonzero()[0].tolist() == [6, 13]
    assert layer.speed_clamps[6] == 1
    assert layer.clamped_ticks == 1


def test_a_policy_that_stays_beyond_the_joint_range_is_stopped():
    limits = dataclasses.replace(LIMITS, max_limit_ticks=3, max_first_jump=100.0)
    layer = SafetyLayer(limits, np.zeros(14))
    lost = np.zeros(14)
    lost[1] = np.deg2rad(150)
    for _ in range(3):
        layer.note_sent(layer.check(lost))
    layer.note_sent(layer.check(np.zeros(14)))
    for _ in range(3):
        layer.note_sent(layer.check(lost))
    with pytest.raises(RejectedError, match=r"4 steps in a row \(right_shoulder\)"):
        layer.check(lost)


def test_the_margin_is_taken_from_the_narrower_of_the_arms_and_the_controllers_range():
    lower, upper = spec.LOWER.copy(), spec.UPPER.copy()
    lower[1], upper[2] = np.deg2rad(-30), np.deg2rad(400)
    limits = Limits.per_tick(SafetySettings(joint_margin_deg=5), 50, (lower, upper))
    np.testing.assert_allclose(np.rad2deg(limits.lower[1]), -25)
    np.testing.assert_allclose(np.rad2deg(limits.upper[2]), 130)
    upper[1] = np.deg2rad(-25)
    with pytest.raises(SiteError, match="leaves no range at right_shoulder"):
        Limits.per_tick(SafetySettings(joint_margin_deg=5), 50, (lower, upper))


@settings(max_examples=20)
@given(
    position=hnp.arrays(np.float64, 14, elements=st.floats(-0.5, 0.5)),
    step=hnp.arrays(np.float64, 14, elements=st.floats(-0.02, 0.02)),
)
def test_braking_never_accelerates_never_reverses_and_comes_to_rest(position, step):
    layer = SafetyLayer(LIMITS, position)
    layer.note_sent(position + step)
    before = layer._motion.step
    for _ in range(200):
        layer.note_sent(layer.brake())
        now = layer._motion.step
        assert (np.abs(now) <= np.abs(before) + 1e-9).all()
        assert (now * before >= -1e-9).all()
        assert (np.abs(now - before) <= LIMITS.max_step_change + 1e-9).all()
        before = now
    assert not layer.is_moving
