"""Chunk players: which step is played at which tick.

The delays vary, and chunks are late or bad.
"""

import threading
import time

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from realman.errors import ServerError
from realman.evaluation.seams import SimulatedDelay
from realman.robots.robot import RobotObservation
from realman.runtime import chunks
from realman.runtime.client import Prediction

HORIZON = 20
plans = hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(14)), elements=st.floats(-1, 1))


def at(value: float) -> np.ndarray:
    return np.full(14, float(value))


class Clockwork:
    """A policy whose step i, seen at time t, is t + i.

    So the right step equals the time.
    """

    def __init__(self, action_chunk: int = 8) -> None:
        self.action_chunk = action_chunk
        self.asked: list[float] = []

    def infer(self, state, images, prompt=None) -> Prediction:
        self.asked.append(state[0])
        return Prediction(state + np.arange(HORIZON)[:, None], 0.1, None)


def play(player: chunks.ChunkPlayer, num_ticks: int) -> list[chunks.Tick]:
    return [player.next_tick(lambda now=now: RobotObservation(at(now), {}, float(now))) for now in range(num_ticks)]


@settings(max_examples=15, deadline=None)
@given(delay=st.integers(0, 9), chunk=st.integers(1, 10), execution=st.sampled_from(["async", "blend"]))
def test_at_any_delay_the_step_played_belongs_to_its_tick_and_nothing_stalls(delay, chunk, execution):
    policy = Clockwork(chunk)
    ticks = play(chunks.make_player(execution, policy, None, ask=SimulatedDelay(delay)), 50)
    np.testing.assert_allclose([t.target[0] for t in ticks], np.arange(50))
    assert not any(t.is_stall for t in ticks)
    assert [t.has_blocked for t in ticks] == [True] + [False] * 49
    # Asked again when the chunk is due, or when a prediction that took longer is there.
    first, *later = np.diff(policy.asked)
    assert first == chunk
    assert set(later) == {max(chunk, delay)}


def test_a_chunk_later_than_the_plan_holds_the_last_target_and_then_continues_in_time():
    player = chunks.AsyncPlayer(Clockwork(8), None, ask=SimulatedDelay(15))
    ticks = play(player, 30)
    played = [t.target[0] for t in ticks]
    # Asked at tick 8 and answered at 23. The plan ended with step 19.
    np.testing.assert_allclose(played, [*range(20), 19, 19, 19, *range(23, 28), 27, 27])
    assert [t.is_stall for t in ticks] == [False] * 20 + [True] * 3 + [False] * 5 + [True] * 2
    assert player.delays == [0, 15]
    assert [t.observed_s for t in ticks][22:24] == [0.0, 8.0]


def test_a_prediction_whose_steps_have_all_passed_is_not_played():
    player = chunks.AsyncPlayer(Clockwork(8), None, ask=SimulatedDelay(HORIZON))
    ticks = play(player, 60)
    assert {t.target[0] for t in ticks[20:]} == {19.0}
    assert all(t.is_stall for t in ticks[20:])


def test_sync_executes_its_chunk_and_looks_again():
    policy = Clockwork(8)
    ticks = play(chunks.make_player("sync", policy, None), 17)
    assert policy.asked == [0, 8, 16]
    assert [i for i, t in enumerate(ticks) if t.has_blocked] == [0, 8, 16]


@settings(max_examples=50, deadline=None)
@given(old=plans, new=plans, num_steps=st.integers(0, 40))
def test_a_cross_fade_stays_between_both_plans_and_ends_in_the_new_one(old, new, num_steps):
    before = old.copy(), new.copy()
    mixed = chunks.cross_fade(old, new, num_steps)
    held = old[np.minimum(np.arange(len(new)), len(old) - 1)]
    assert mixed.shape == new.shape
    assert (mixed >= np.minimum(held, new) - 1e-12).all()
    assert (mixed <= np.maximum(held, new) + 1e-12).all()
    np.testing.assert_array_equal(mixed[num_steps:], new[num_steps:])
    np.testing.assert_array_equal(old, before[0])
    np.testing.assert_array_equal(new, before[1])


@settings(max_examples=50, deadline=None)
@given(plan=plans, offset=hnp.arrays(np.float64, 14, elements=st.floats(-1, 1)), num_steps=st.integers(1, 30))
def test_a_cross_fade_makes_a_jump_smaller_by_its_number_of_steps(plan, offset, num_steps):
    mixed = chunks.cross_fade(plan, plan + offset, num_steps)
    added = np.abs(np.diff(mixed - plan, axis=0, prepend=np.zeros((1, 14))))
    assert (added <= np.abs(offset) / (num_steps + 1) + 1e-9).all()


def test_the_first_step_after_a_stall_fades_from_where_the_arms_are_held():
    mixed = chunks.cross_fade(at(3)[None], np.full((4, 14), 7.0), 3)
    np.testing.assert_allclose(mixed[:, 0], [4, 5, 6, 7])


class Slow(Clockwork):
    """Answers only when it may."""

    def __init__(self) -> None:
        super().__init__(1)
        self.may_answer = threading.Event()
        self.error: Exception | None = None

    def infer(self, state, images, prompt=None) -> Prediction:
        if self.asked:
            assert self.may_answer.wait(20)
            if self.error:
                raise self.error
        return super().infer(state, images, prompt)


def test_a_prediction_in_a_thread_never_holds_up_a_tick():
    policy = Slow()
    player = chunks.AsyncPlayer(policy, None)
    play(player, 10)
    assert policy.asked == [0]
    policy.may_answer.set()
    until = time.monotonic() + 20
    while len(player.delays) < 2:
        assert time.monotonic() < until
        tick = player.next_tick(lambda: RobotObservation(at(0), {}, 0.0))
        time.sleep(0.001)
    assert tick.is_seam or player.delays[1] >= HORIZON


def test_the_error_of_a_prediction_in_a_thread_ends_the_run():
    policy = Slow()
    policy.error = ServerError("gone")
    player = chunks.AsyncPlayer(policy, None)
    play(player, 3)
    policy.may_answer.set()

    def go_on() -> None:
        for _ in range(10_000):
            player.next_tick(lambda: RobotObservation(at(0), {}, 0.0))
            time.sleep(0.001)

    with pytest.raises(ServerError, match="gone"):
        go_on()
