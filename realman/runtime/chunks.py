"""Chunk players turn a policy's chunks into one target per tick.

sync    execute `action_chunk` steps, brake along the path, then hold while the next chunk is predicted
async   ask for the next chunk while the present one plays, and skip those of its steps whose time has passed
blend   as async, and fade from the old chunk to the new one over some steps
rtc     as async, and send the steps that are executed meanwhile, so that the policy continues from them

Step i of a chunk belongs to the tick of its observation plus i, so the delay of a prediction is counted in ticks that
were really played. Only `rtc` needs the delay in advance. A wrong estimate makes its motion less smooth, but every step
still comes at its right tick.
"""

import collections
from collections.abc import Callable, Mapping
import logging
import math
import threading
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
import numpy as np

from realman.arrays import Image
from realman.arrays import JointTraj
from realman.arrays import JointVec
from realman.errors import ServerError
from realman.robots.robot import RobotObservation
from realman.runtime.client import LeftOver
from realman.runtime.client import Prediction

logger = logging.getLogger(__name__)

Observe = Callable[[], RobotObservation]
Execution = Literal["sync", "async", "blend", "rtc"]

BLEND_STEPS = 8
"""Steps of a cross-fade, 160 ms at 50 Hz: long enough to hide a seam, short compared with a chunk of 25."""

DELAYS_REMEMBERED = 10
"""Number of predictions whose longest delay is expected of the next one (arXiv 2506.07339).

With a chunk of 25 steps at 50 Hz they cover 5 s."""


class Tick(NamedTuple):
    """One step to execute."""

    target: JointVec
    observed_s: float
    """`time.monotonic()` of the observation that the step was predicted from."""
    is_seam: bool = False
    """Whether it is the first step of a new chunk."""
    has_blocked: bool = False
    """Whether the loop waited for a prediction and the arms stood still."""
    is_stall: bool = False
    """Whether the last target is held because no step was left."""


@runtime_checkable
class ChunkPolicy(Protocol):
    """A source of chunks, such as `realman.runtime.client.PolicyClient`."""

    @property
    def action_chunk(self) -> int:
        """Steps to execute of each prediction."""
        ...

    def infer(self, state: JointVec, images: Mapping[str, Image], prompt: str | None = None) -> Prediction:
        """Return the next actions for an observation."""
        ...


@runtime_checkable
class RtcPolicy(ChunkPolicy, Protocol):
    """A policy that can continue the previous chunk.

    `realman.runtime.client.PolicyClient` is one.
    """

    @property
    def fps(self) -> float:
        """Rate of its steps, Hz."""
        ...

    def require_rtc(self) -> None:
        """Raise `ServerError` unless the policy supports `left_over`."""
        ...

    def infer(
        self,
        state: JointVec,
        images: Mapping[str, Image],
        prompt: str | None = None,
        left_over: LeftOver | None = None,
    ) -> Prediction:
        """Return the next actions, which continue `left_over` if it is given."""
        ...


@runtime_checkable
class ChunkRequest(Protocol):
    """A prediction in progress."""

    def poll(self) -> Prediction | None:
        """Return the prediction, or None while it is in progress.

        The player calls this once per tick. It raises what the policy raised.
        """
        ...


Ask = Callable[[Callable[[], Prediction]], ChunkRequest]
"""Starts a prediction without waiting for it."""


class ThreadChunkRequest:
    """A prediction in a thread of its own."""

    def __init__(self, predict: Callable[[], Prediction]) -> None:
        self._predict = predict
        self._result: Prediction | None = None
        self._error: BaseException | None = None
        # A daemon, because a server that never answers must not keep the program from ending.
        threading.Thread(target=self._run, name="prediction", daemon=True).start()

    def poll(self) -> Prediction | None:
        """Return the prediction or None, or raise its error."""
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._predict()
        except BaseException as e:
            self._error = e


@runtime_checkable
class ChunkPlayer(Protocol):
    """Turns a policy's chunks into one target per tick."""

    round_trips_s: list[float]
    """Duration of each prediction, from observation to checked reply, s."""
    infer_s: list[float]
    """Inference time of each prediction whose server reported it, s."""

    def next_tick(self, observe: Observe) -> Tick:
        """Return the step to execute now."""
        ...


@runtime_checkable
class BlockingPlayer(ChunkPlayer, Protocol):
    """A player that sometimes waits for a prediction.

    The loop brings the arms to rest before such a wait, because nothing is sent during it.
    """

    @property
    def will_block(self) -> bool:
        """Whether `next_tick` will wait for a prediction."""
        ...


class SyncPlayer:
    """Executes the first `action_chunk` steps of a prediction, then predicts again."""

    def __init__(self, policy: ChunkPolicy, prompt: str | None) -> None:
        self._policy = policy
        self._prompt = prompt
        self._left: list[np.ndarray] = []
        self._observed_s = 0.0
        self.round_trips_s: list[float] = []
        self.infer_s: list[float] = []

    @property
    def will_block(self) -> bool:
        """Whether the chunk is used up."""
        return not self._left

    def next_tick(self, observe: Observe) -> Tick:
        """Return the next step of the chunk, or of a new one."""
        if self._left:
            return Tick(self._left.pop(0), self._observed_s)
        observation = observe()
        prediction = self._policy.infer(observation.state, observation.images, self._prompt)
        _note(self, prediction)
        self._observed_s = observation.time_s
        first, *self._left = prediction.actions[: self._policy.action_chunk]
        return Tick(first, self._observed_s, is_seam=True, has_blocked=True)


class AsyncPlayer:
    """Predicts the next chunk while the present one plays.

    It asks for the next chunk when `action_chunk` ticks have passed since the observation of the present one. The arms
    do not stop as long as a prediction takes no longer than the steps that follow `action_chunk`. With a horizon of 50
    steps and a chunk of 25 at 50 Hz, that is 500 ms. The loop waits for the first prediction.
    """

    def __init__(
        self, policy: ChunkPolicy, prompt: str | None, *, blend_steps: int = 0, ask: Ask = ThreadChunkRequest
    ) -> None:
        """Play the predictions of `policy` for one task.

        Args:
            policy: Where chunks come from.
            prompt: Task text. None lets the server use its default.
            blend_steps: Steps of the fade from each chunk to the next. 0 does not fade.
            ask: Starts a prediction.
        """
        self._policy = policy
        self._prompt = prompt
        self._blend_steps = blend_steps
        self._ask = ask
        self._tick = -1
        self._asked_tick = 0
        """Tick of the newest observation that was sent to the policy."""
        self._asked_s = 0.0
        self._observed_s = 0.0
        self._request: ChunkRequest | None = None
        self._plan: JointTraj | None = None
        self._plan_tick = 0
        """Tick of the plan's first step."""
        self.delays: list[int] = []
        """Ticks that passed during each prediction."""
        self.round_trips_s: list[float] = []
        self.infer_s: list[float] = []

    @property
    def will_block(self) -> bool:
        """Whether no chunk was predicted yet."""
        return self._plan is None

    def next_tick(self, observe: Observe) -> Tick:
        """Return this tick's step, or the last one if none is left."""
        self._tick += 1
        # The first chunk: nothing can be played before it.
        if self._plan is None:
            self._adopt(self._predict(observe())())
            assert self._plan is not None
            return Tick(self._plan[0].copy(), self._observed_s, is_seam=True, has_blocked=True)
        # A prediction may answer at once, so look for it before and after a new one is started.
        is_seam = self._collect()
        if self._request is None and self._tick - self._asked_tick >= self._policy.action_chunk:
            self._request = self._ask(self._predict(observe()))
            is_seam |= self._collect()
        index = self._tick - self._plan_tick
        is_stall = index >= len(self._plan)
        target = self._plan[min(index, len(self._plan) - 1)].copy()
        return Tick(target, self._observed_s, is_seam=is_seam, is_stall=is_stall)

    def _collect(self) -> bool:
        """Take a finished prediction and return whether a new plan begins."""
        if self._request is None or (prediction := self._request.poll()) is None:
            return False
        self._request = None
        return self._adopt(prediction)

    def _predict(self, observation: RobotObservation) -> Callable[[], Prediction]:
        self._asked_tick, self._asked_s = self._tick, observation.time_s
        return lambda: self._policy.infer(observation.state, observation.images, self._prompt)

    def _adopt(self, prediction: Prediction) -> bool:
        """Replace the plan with a prediction and return whether that was possible.

        It is not possible if the time of all its steps has passed.
        """
        _note(self, prediction)
        delay = self._tick - self._asked_tick
        self.delays.append(delay)
        new = prediction.actions[delay:]
        if not len(new):
            return False
        if self._plan is not None:
            old = self._plan[self._tick - self._plan_tick :]
            if len(old):
                # Never fade beyond the old plan's end, which would pull the arms back to where it ended.
                new = cross_fade(old, new, min(self._blend_steps, len(old)))
            else:
                # The old plan is used up and held at its last step, so fade from that step.
                new = cross_fade(self._plan[-1:], new, self._blend_steps)
        self._plan, self._plan_tick, self._observed_s = new, self._tick, self._asked_s
        return True


class RtcPlayer(AsyncPlayer):
    """Plays asynchronously with real-time chunking.

    Each new chunk continues the steps that are executed while it is predicted. With each observation the policy gets
    the steps that are still to be played, and how many of them will have been played when it answers. The expected
    number is the conservative one: that of the slowest of the last predictions. A prediction that takes longer is
    counted and played from the step of its own tick, as in `AsyncPlayer`. Then its seam is only as smooth as the policy
    made it.

    For s steps between two predictions and a horizon of H, the delay d must satisfy d <= s <= H - d.
    """

    def __init__(self, policy: RtcPolicy, prompt: str | None, *, ask: Ask = ThreadChunkRequest) -> None:
        """Play the predictions of `policy` for one task.

        Raises:
            ServerError: The policy does not support real-time chunking.
        """
        policy.require_rtc()
        super().__init__(policy, prompt, ask=ask)
        self._rtc_policy = policy
        self._recent_delays: collections.deque[int] = collections.deque(maxlen=DELAYS_REMEMBERED)
        self._expected_delay = 0
        self._horizon = 0
        self.num_late = 0
        """Predictions that took longer than expected."""

    def _predict(self, observation: RobotObservation) -> Callable[[], Prediction]:
        if self._plan is None:
            return super()._predict(observation)
        self._asked_tick, self._asked_s = self._tick, observation.time_s
        left_over = self._left_over(self._plan)
        return lambda: self._rtc_policy.infer(observation.state, observation.images, self._prompt, left_over)

    def _left_over(self, plan: JointTraj) -> LeftOver:
        """Return the steps that are still to be played.

        They are the remaining steps of the plan. If fewer remain than the expected delay, the last step is repeated,
        because it is held then.
        """
        self._expected_delay = min(max(self._recent_delays), self._horizon)
        steps = plan[self._tick - self._plan_tick :]
        num_held = max(self._expected_delay, 1) - len(steps)
        return LeftOver(np.concatenate([steps, *[plan[-1:]] * num_held]), self._expected_delay)

    def _adopt(self, prediction: Prediction) -> bool:
        is_first = self._plan is None
        is_seam = super()._adopt(prediction)
        if is_first:
            # The arms waited for the first prediction, so no ticks passed. Its delay comes from the clock.
            delay = math.ceil(prediction.round_trip_s * self._rtc_policy.fps)
            self._horizon = len(prediction.actions)
            self._check_delay(delay)
        else:
            delay = self.delays[-1]
            if delay > self._expected_delay:
                self.num_late += 1
                logger.debug("a prediction took %d steps, %d were expected", delay, self._expected_delay)
        self._recent_delays.append(delay)
        return is_seam

    def _check_delay(self, delay: int) -> None:
        chunk = self._policy.action_chunk
        if delay > (limit := min(chunk, self._horizon - chunk)):
            raise ServerError(
                f"real-time chunking: a prediction takes {delay} steps of {1000 / self._rtc_policy.fps:g} ms, expected "
                f"at most {limit} with {chunk} of {self._horizon} steps executed. Make the server faster "
                "(--num-steps), change action_chunk, or choose the execution 'sync'"
            )


def cross_fade(old: Float[np.ndarray, "u 14"], new: JointTraj, num_steps: int) -> JointTraj:
    """Fade linearly from one plan to another, step by step.

    Args:
        old: Remaining steps of the old plan, at least one. Its last step is held.
        new: Remaining steps of the new plan. It is not changed.
        num_steps: Number of mixed steps. Step i of them has (i + 1) / (num_steps + 1) of the new plan.

    Returns:
        A plan as long as `new`.
    """
    num_mixed = min(num_steps, len(new))
    held = old[np.minimum(np.arange(num_mixed), len(old) - 1)]
    share = (np.arange(1, num_mixed + 1) / (num_steps + 1))[:, None]
    mixed = new.copy()
    mixed[:num_mixed] = held + share * (new[:num_mixed] - held)
    return mixed


def make_player(
    execution: Execution,
    policy: ChunkPolicy,
    prompt: str | None,
    *,
    blend_steps: int = BLEND_STEPS,
    ask: Ask = ThreadChunkRequest,
) -> ChunkPlayer:
    """Make the player for an execution mode.

    Raises:
        ServerError: The policy does not support the mode.
        TypeError: The mode is 'rtc' and the policy is not an `RtcPolicy`.
    """
    if execution == "sync":
        return SyncPlayer(policy, prompt)
    if execution == "rtc":
        if not isinstance(policy, RtcPolicy):
            raise TypeError(f"execution 'rtc' needs an RtcPolicy, found {type(policy).__name__}")
        return RtcPlayer(policy, prompt, ask=ask)
    return AsyncPlayer(policy, prompt, blend_steps=blend_steps if execution == "blend" else 0, ask=ask)


def _note(player: ChunkPlayer, prediction: Prediction) -> None:
    player.round_trips_s.append(prediction.round_trip_s)
    if prediction.infer_s is not None:
        player.infer_s.append(prediction.infer_s)
