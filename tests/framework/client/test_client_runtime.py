"""The control loop, and the broker that plays a chunk back step by step."""

import numpy as np
import pytest

from openpi_client import action_chunk_broker
from openpi_client import base_policy
from openpi_client.runtime import agent as _agent
from openpi_client.runtime import environment as _environment
from openpi_client.runtime import runtime as _runtime
from openpi_client.runtime import subscriber as _subscriber
from openpi_client.runtime.agents import policy_agent


class CountingPolicy(base_policy.BasePolicy):
    """Chunk n holds the actions 10 n, 10 n + 1, ..."""

    def __init__(self, **extra):
        self.num_calls = 0
        self.num_resets = 0
        self.extra = extra

    def infer(self, obs):
        self.num_calls += 1
        actions = 10.0 * self.num_calls + np.arange(5.0)[:, None]
        return {"actions": actions, "policy_timing": {"infer_ms": 1.5}, **self.extra}

    def reset(self):
        self.num_resets += 1


class Log:
    """An environment, agent and subscriber in one, which records all calls."""

    def __init__(self, fail_at=None):
        self.events = []
        self.fail_at = fail_at
        self.num_steps = 0

    def names(self):
        return [event.split(" ")[0] for event in self.events]


class Robot(_environment.Environment):
    def __init__(self, log, complete_after=None):
        self.log = log
        self.complete_after = complete_after
        self.num_steps = 0

    def reset(self):
        self.log.events.append("reset")
        self.num_steps = 0

    def is_episode_complete(self):
        return self.num_steps == self.complete_after

    def get_observation(self):
        return {"step": self.num_steps}

    def apply_action(self, action):
        self.num_steps += 1
        if self.log.fail_at == self.num_steps:
            raise RuntimeError("the arm is stuck")
        self.log.events.append("apply")


class Driver(_agent.Agent):
    def __init__(self, log):
        self.log = log

    def get_action(self, observation):
        return {"actions": observation["step"]}

    def reset(self):
        self.log.events.append("agent_reset")


class Watcher(_subscriber.Subscriber):
    def __init__(self, log, name="watcher"):
        self.log = log
        self.name = name
        self.on_step_hook = lambda: None

    def on_episode_start(self):
        self.log.events.append(f"start {self.name}")

    def on_step(self, observation, action):
        assert action == {"actions": observation["step"]}
        self.log.events.append(f"step {self.name}")
        self.on_step_hook()

    def on_episode_end(self):
        self.log.events.append(f"end {self.name}")


class Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self, monkeypatch):
        self.now_s = 100.0
        self.slept_s = []
        monkeypatch.setattr(_runtime.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(_runtime.time, "sleep", self.sleep)

    def sleep(self, duration_s):
        self.slept_s.append(duration_s)
        self.now_s += duration_s


def _run(log, *, robot=None, watchers=None, **kwargs):
    loop = _runtime.Runtime(robot or Robot(log), Driver(log), watchers or [Watcher(log)], **kwargs)
    loop.run()
    return loop


def test_an_episode_runs_in_order_and_exactly_as_many_steps_as_allowed():
    log = Log()
    _run(log, max_episode_steps=2)
    assert log.names() == ["reset", "agent_reset", "start", "apply", "step", "apply", "step", "end", "reset"]


def test_the_environment_ends_an_episode_and_the_next_one_starts():
    log = Log()
    _run(log, robot=Robot(log, complete_after=3), num_episodes=2)
    assert log.names().count("step") == 6
    assert log.names().count("start") == log.names().count("end") == 2
    assert log.names().count("reset") == 3


def test_an_episode_can_be_ended_from_outside_after_its_current_step():
    log = Log()
    watcher = Watcher(log)
    loop = _runtime.Runtime(Robot(log), Driver(log), [watcher], num_episodes=2)
    watcher.on_step_hook = loop.mark_episode_complete
    thread = loop.run_in_new_thread()
    thread.join(20)
    assert not thread.is_alive()
    assert log.names().count("step") == 2


def test_a_failure_still_announces_the_end_to_all_but_moves_nothing():
    log = Log(fail_at=2)
    with pytest.raises(RuntimeError, match="the arm is stuck"):
        _run(log, watchers=[Watcher(log, "a"), Watcher(log, "b")], max_episode_steps=5)
    assert log.events[-3:] == ["step b", "end b", "end a"]


def test_a_subscriber_that_fails_at_the_end_does_not_keep_it_from_the_others():
    log = Log()
    bad = Watcher(log, "bad")
    bad.on_episode_end = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        _run(log, watchers=[Watcher(log, "good"), bad], max_episode_steps=1)
    assert log.events[-1] == "end good"


def test_steps_keep_to_a_grid_and_errors_do_not_add_up(monkeypatch):
    clock, log, starts = Clock(monkeypatch), Log(), []
    watcher = Watcher(log)

    def work():
        starts.append(clock.now_s)
        clock.now_s += 0.003  # each step takes a while

    watcher.on_step_hook = work
    loop = _run(log, watchers=[watcher], max_hz=50, max_episode_steps=100)
    np.testing.assert_allclose(starts, 100.0 + 0.02 * np.arange(100), atol=1e-9)
    assert loop.num_late_steps == 0


def test_time_lost_by_a_slow_step_is_not_made_up_for_in_a_burst(monkeypatch):
    clock, log, starts = Clock(monkeypatch), Log(), []
    watcher = Watcher(log)

    def work():
        starts.append(round(clock.now_s - 100.0, 6))
        clock.now_s += 0.25 if len(starts) == 2 else 0.01

    watcher.on_step_hook = work
    loop = _run(log, watchers=[watcher], max_hz=10, max_episode_steps=5)
    # The second step starts at 0.1 and ends at 0.35. The points 0.2 and 0.3 are missed, and the grid is kept.
    assert starts == [0.0, 0.1, 0.4, 0.5, 0.6]
    assert loop.num_late_steps == 1


def test_without_a_rate_nobody_sleeps(monkeypatch):
    clock, log = Clock(monkeypatch), Log()
    _run(log, max_episode_steps=3)
    assert clock.slept_s == []


def test_a_policy_agent_passes_calls_on():
    policy = CountingPolicy()
    agent = policy_agent.PolicyAgent(policy)
    assert agent.get_action({})["actions"].shape == (5, 1)
    agent.reset()
    assert policy.num_resets == 1


def test_the_broker_hands_out_a_chunk_step_by_step_and_asks_again():
    policy = CountingPolicy()
    broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=3)
    results = [broker.infer({"obs": i}) for i in range(7)]
    assert [float(result["actions"][0]) for result in results] == [10, 11, 12, 20, 21, 22, 30]
    assert results[0]["policy_timing"] == results[1]["policy_timing"] == {"infer_ms": 1.5}
    assert policy.num_calls == 3


def test_the_broker_cuts_nested_chunks_and_leaves_everything_else_alone():
    extra = {
        "debug": {"velocity": np.arange(5), "names": ["a", "b"], "list": [np.arange(5), 3]},
        "scalar": np.array(7.0),
        "camera_matrix": np.eye(3),
    }
    broker = action_chunk_broker.ActionChunkBroker(CountingPolicy(**extra), action_horizon=2)
    broker.infer({})
    second = broker.infer({})
    assert second["debug"] == {"velocity": 1, "names": ["a", "b"], "list": [1, 3]}
    assert second["scalar"] == 7.0
    np.testing.assert_array_equal(second["camera_matrix"], np.eye(3))


def test_a_reset_drops_the_rest_of_the_chunk():
    policy = CountingPolicy()
    broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=3)
    broker.infer({})
    broker.reset()
    assert broker.infer({})["actions"] == [20]
    assert policy.num_resets == 1


def test_a_chunk_shorter_than_the_horizon_is_refused_at_once():
    broker = action_chunk_broker.ActionChunkBroker(CountingPolicy(), action_horizon=6)
    with pytest.raises(ValueError, match="returned 5 steps, expected at least action_horizon = 6"):
        broker.infer({})
    with pytest.raises(ValueError, match="at least 1"):
        action_chunk_broker.ActionChunkBroker(CountingPolicy(), action_horizon=0)
