"""The control loop: observe, decide and act at a steady rate."""

import contextlib
import logging
import math
import threading
import time

from openpi_client.runtime.agent import Agent
from openpi_client.runtime.environment import Environment
from openpi_client.runtime.subscriber import Subscriber

logger = logging.getLogger(__name__)


class Runtime:
    """Runs an agent in an environment and notifies subscribers."""

    def __init__(
        self,
        environment: Environment,
        agent: Agent,
        subscribers: list[Subscriber],
        max_hz: float = 0,
        num_episodes: int = 1,
        max_episode_steps: int = 0,
    ) -> None:
        """Keep the settings. `run` starts the loop.

        Args:
            environment: The robot.
            agent: Decides each action.
            subscribers: Notified of each step in this order, and of the end of an episode in reverse order.
            max_hz: Steps per second. 0 runs as fast as possible.
            num_episodes: Episodes that `run` performs.
            max_episode_steps: Steps after which an episode ends. 0 means no limit.
        """
        self._environment = environment
        self._agent = agent
        self._subscribers = list(subscribers)
        self._period_s = 1.0 / max_hz if max_hz > 0 else 0.0
        self._num_episodes = num_episodes
        self._max_episode_steps = max_episode_steps
        self._episode_complete = threading.Event()
        self._num_late_steps = 0

    @property
    def num_late_steps(self) -> int:
        """Number of steps so far that took longer than the period."""
        return self._num_late_steps

    def run(self) -> None:
        """Perform all episodes, then reset the environment once more.

        An exception ends the loop at once. Subscribers are notified of the episode's end, but the environment is not reset,
        because a robot should not move to its start pose after a failure that nobody has inspected.
        """
        for _ in range(self._num_episodes):
            self._run_episode()
        self._environment.reset()

    def run_in_new_thread(self) -> threading.Thread:
        """Start `run` in a daemon thread and return it."""
        thread = threading.Thread(target=self.run, name="openpi-runtime", daemon=True)
        thread.start()
        return thread

    def mark_episode_complete(self) -> None:
        """End the episode after the current step.

        You may call this from any thread.
        """
        self._episode_complete.set()

    def _run_episode(self) -> None:
        logger.info("episode starts")
        self._environment.reset()
        self._agent.reset()
        self._episode_complete.clear()
        with contextlib.ExitStack() as announce_end:
            for subscriber in self._subscribers:
                subscriber.on_episode_start()
                announce_end.callback(subscriber.on_episode_end)
            self._run_steps()
        logger.info("episode ended")

    def _run_steps(self) -> None:
        start_s = time.monotonic()
        tick = num_steps = 0
        while True:
            self._step()
            num_steps += 1
            if num_steps == self._max_episode_steps or self._environment.is_episode_complete():
                self._episode_complete.set()
            if self._episode_complete.is_set():
                return
            tick = self._wait_for_next_tick(start_s, tick)

    def _step(self) -> None:
        observation = self._environment.get_observation()
        action = self._agent.get_action(observation)
        self._environment.apply_action(action)
        for subscriber in self._subscribers:
            subscriber.on_step(observation, action)

    def _wait_for_next_tick(self, start_s: float, tick: int) -> int:
        """Sleep until the next `start + k * period` and return k.

        The times depend on the episode's start alone, so errors do not add up. Times that an overrun has missed are skipped,
        because a burst of steps would move the robot faster than the policy intended.
        """
        if not self._period_s:
            return tick
        elapsed_s = time.monotonic() - start_s
        next_tick = tick + 1
        if elapsed_s > next_tick * self._period_s:
            self._num_late_steps += 1
            next_tick = math.ceil(elapsed_s / self._period_s)
        time.sleep(max(0.0, next_tick * self._period_s - elapsed_s))
        return next_tick
