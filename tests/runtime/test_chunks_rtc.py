"""Real-time chunking on the robot's side: which steps the policy gets."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from openpi_client import websocket_client_policy
from realman.errors import ServerError
from realman.evaluation.seams import SimulatedDelay
from realman.robots.robot import RobotObservation
from realman.runtime import chunks
from realman.runtime import client
from realman.runtime.client import LeftOver
from realman.runtime.client import Prediction

HORIZON = 20
FPS = 50.0


def at(value: float) -> np.ndarray:
    return np.full(14, float(value))


class Clockwork:
    """A policy whose step i, seen at time t, is t + i + n / 100.

    n is the number of the prediction.
    """

    def __init__(self, action_chunk: int = 8, round_trip_s: float = 0.0) -> None:
        self.action_chunk = action_chunk
        self.fps = FPS
        self.asked: list[tuple[float, LeftOver | None]] = []
        self._round_trip_s = round_trip_s

    def require_rtc(self) -> None:
        """This one can."""

    def infer(self, state, images, prompt=None, left_over=None) -> Prediction:
        self.asked.append((state[0], left_over))
        return Prediction(state + np.arange(HORIZON)[:, None] + len(self.asked) / 100, self._round_trip_s, None)


class ScriptedDelays:
    """An `Ask` whose predictions take the given numbers of ticks.

    The last number repeats.
    """

    def __init__(self, delays: list[int]) -> None:
        self._delays = list(delays)

    def __call__(self, predict):
        delay = self._delays.pop(0) if len(self._delays) > 1 else self._delays[0]
        return SimulatedDelay(delay)(predict)


def play(player: chunks.ChunkPlayer, num_ticks: int) -> list[chunks.Tick]:
    return [player.next_tick(lambda now=now: RobotObservation(at(now), {}, float(now))) for now in range(num_ticks)]


@settings(max_examples=25, deadline=None)
@given(delays=st.lists(st.integers(0, 9), min_size=1, max_size=12), chunk=st.integers(1, 10))
def test_the_policy_gets_the_steps_that_are_really_played_next(delays, chunk):
    policy = Clockwork(chunk)
    player = chunks.make_player("rtc", policy, None, ask=ScriptedDelays(delays))
    ticks = play(player, 60)
    played = [tick.target[0] for tick in ticks]
    # At any delay, each tick plays its own step.
    np.testing.assert_array_equal(np.floor(np.round(played, 6)), np.arange(60))
    assert not any(tick.is_stall for tick in ticks)
    (first_tick, nothing), *later = policy.asked
    assert (first_tick, nothing) == (0, None)
    for measured, (tick, left_over) in zip(player.delays[1:], later, strict=False):
        until_there = played[int(tick) : int(tick) + measured]
        np.testing.assert_allclose(left_over.actions[:measured, 0], until_there)
        assert 0 <= left_over.delay <= len(left_over.actions) <= HORIZON


def test_the_longest_of_the_last_ten_delays_is_expected_of_the_next():
    policy = Clockwork(4, round_trip_s=0.041)
    player = chunks.RtcPlayer(policy, None, ask=ScriptedDelays([1, 4, *[2] * 9, 0]))
    play(player, 80)
    sent = [left_over.delay for _, left_over in policy.asked[1:]]
    # The first delay is three steps, by the clock. Then it is 4 as long as that is among the last ten.
    assert sent[:3] == [3, 3, 4]
    assert sent[3:12] == [4] * 9
    assert sent[12] == 2
    assert player.num_late == 1


def test_a_late_prediction_is_played_from_its_own_tick_on():
    policy = Clockwork(4)
    player = chunks.RtcPlayer(policy, None, ask=ScriptedDelays([0, 5]))
    ticks = play(player, 20)
    assert player.num_late == 1
    assert np.floor(ticks[13].target[0]) == 13
    assert [t.is_seam for t in ticks][9:15] == [False, False, False, False, True, False]


def test_a_policy_that_let_the_plan_run_out_continues_from_the_held_step():
    policy = Clockwork(8)
    player = chunks.RtcPlayer(policy, None, ask=ScriptedDelays([15, 0]))
    ticks = play(player, 30)
    assert [tick.is_stall for tick in ticks[:24]] == [False] * 20 + [True] * 3 + [False]
    tick, left_over = policy.asked[2]
    assert (tick, left_over.delay) == (23, 15)
    # 5 steps of the plan made at tick 8, then its last one.
    np.testing.assert_allclose(left_over.actions[:, 0] - 0.02, [*range(23, 28), *([27] * 10)])


def test_a_delay_that_no_chunk_can_bridge_is_refused_before_anything_moves():
    slow = Clockwork(8, round_trip_s=0.17)
    with pytest.raises(ServerError, match=r"takes 9 steps of 20 ms, expected at most 8 with 8 of 20 steps executed"):
        play(chunks.make_player("rtc", slow, None), 1)
    with pytest.raises(ServerError, match="expected at most 4 with 16 of 20"):
        play(chunks.make_player("rtc", Clockwork(16, round_trip_s=0.09), None), 1)
    play(chunks.make_player("rtc", Clockwork(8, round_trip_s=0.16), None), 1)


def policy_client(features: object) -> client.PolicyClient:
    metadata = {"fps": 50, **({} if features is None else {"protocol": {"features": features}})}
    unused = object.__new__(websocket_client_policy.WebsocketClientPolicy)
    return client.PolicyClient(unused, client.ServerInfo("host:8000", (), 8, HORIZON, metadata), 8)


@pytest.mark.parametrize(
    ("features", "named"), [(None, "none"), ([], "none"), (["timing", "deadline"], "timing, deadline")]
)
def test_a_server_without_the_feature_is_refused_with_a_remedy(features, named):
    message = rf"host:8000: its features are {named}, expected real-time chunking \('rtc'\)\. .*execution 'blend'"
    with pytest.raises(ServerError, match=message):
        chunks.make_player("rtc", policy_client(features), None)


def test_a_server_with_the_feature_is_taken():
    assert isinstance(chunks.make_player("rtc", policy_client(["rtc"]), None), chunks.RtcPlayer)


def test_the_request_carries_the_left_over_as_plain_numbers():
    images = {"cam_high": np.zeros((8, 8, 3), np.uint8)}
    left_over = LeftOver(np.ones((5, 14)), 3)
    request = client.build_request(at(0), images, ["cam_high"], None, left_over)
    assert set(request) == {"state", "images", "rtc"}
    assert request["rtc"]["delay"] == 3
    assert request["rtc"]["left_over"].dtype == np.float32
    np.testing.assert_array_equal(request["rtc"]["left_over"], np.ones((5, 14)))
    assert "rtc" not in client.build_request(at(0), images, ["cam_high"], "wave")
