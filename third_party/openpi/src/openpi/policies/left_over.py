"""Check requests for real-time chunking and convert them for the model.

A request's optional key "rtc" is a dict:

    "left_over": (k, d) float          # rows of the previous chunk from the time of the observation, as robot actions
    "delay": int                       # rows that will have been executed when the answer arrives, 0 <= delay <= k
    "method": "identity" | "vjp" | "prefix"     # optional, by default what fits the model best
    "schedule": "exp" | "linear" | "ones" | "zeros"     # optional
    "max_guidance_weight": float       # optional

The left-over arrives as the robot's own actions. It passes through the transforms of training actions together with the
state of the same request. Relative actions are thus relative to the current state, and the state of the previous chunk
does not matter. Nothing is kept between requests.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import inspect
from typing import Any

import numpy as np

from openpi.models import model as _model
from openpi.models import real_time_chunking as rtc
from openpi.shared.errors import ConfigError
from openpi.shared.errors import DataError
from openpi_client import protocol

_KEYS = ("left_over", "delay", "method", "schedule", "max_guidance_weight")
_REQUIRED = ("left_over", "delay")

# A larger correction overshoots at any number of steps.
_MAX_WEIGHT = 1000.0

# The published settings. "vjp": from the paper. "identity": its author's advice to LeRobot. The weight rises to the number
# of steps, so that the last step reaches the rows to be kept.
_VJP_MAX_WEIGHT, _VJP_PRIOR_STD = 5.0, 1.0
_IDENTITY_PRIOR_STD = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class LeftOver:
    """A checked request."""

    actions: np.ndarray
    """Rows of the previous chunk (k, d), as the robot's actions."""
    delay: int
    method: rtc.Method
    schedule: str
    max_weight: float | None
    """None: the published value of the method."""


def methods_of(model: _model.BaseModel) -> tuple[rtc.Method, ...]:
    """Return the methods that a model supports, the preferred one first."""
    if "guidance" not in inspect.signature(model.sample_actions).parameters:
        return ()
    return rtc.METHODS if getattr(model, "rtc_max_delay", 0) else tuple(m for m in rtc.METHODS if m != "prefix")


class LeftOverReader:
    """Reads the left-over from requests and converts it for the model.

    It accepts only methods that the model supports.
    """

    def __init__(
        self, model: _model.BaseModel, methods: Sequence[rtc.Method] | None, num_steps: int | None = None
    ) -> None:
        """Read for a model.

        Args:
            model: The policy's model.
            methods: Allowed methods, the preferred one first. None allows those that take no extra time.
            num_steps: Number of sampling steps of the policy. None: the model's default.

        Raises:
            ConfigError: The model does not support one of the methods.
        """
        possible = methods_of(model)
        self.methods = tuple(m for m in possible if m != "vjp") if methods is None else tuple(methods)
        if lacking := [method for method in self.methods if method not in possible]:
            raise ConfigError(
                f"real-time chunking: found methods {lacking}, expected some of {list(possible)}. pi0-FAST supports none, "
                "and 'prefix' needs a model trained with rtc_max_delay"
            )
        self._horizon = model.action_horizon
        self._max_prefix_delay = getattr(model, "rtc_max_delay", 0)
        if self.methods:
            self._num_steps = num_steps or inspect.signature(model.sample_actions).parameters["num_steps"].default

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata for clients. Empty if no method is allowed."""
        if not self.methods:
            return {}
        limits = {"max_prefix_delay": self._max_prefix_delay} if "prefix" in self.methods else {}
        return {protocol.RTC_KEY: {"methods": list(self.methods), "schedules": list(rtc.SCHEDULES), **limits}}

    def examples(self, example: Mapping[str, Any], actions: np.ndarray) -> list[dict[str, Any]]:
        """Return a request for each program.

        Args:
            example: A plain request.
            actions: The actions that answered it.
        """
        delay = min(1, self._max_prefix_delay)
        return [
            {**example, protocol.RTC_KEY: {"left_over": actions, "delay": delay, "method": method}}
            for method in self.methods
        ]

    def split(self, obs: Mapping[str, Any]) -> tuple[dict[str, Any], LeftOver | None]:
        """Take the left-over, if any, out of an observation.

        Raises:
            DataError: This policy cannot use it, or it is not as described in the module's docstring.
        """
        if protocol.RTC_KEY not in obs:
            return dict(obs), None
        rest = {key: value for key, value in obs.items() if key != protocol.RTC_KEY}
        return rest, self._read(obs[protocol.RTC_KEY])

    def _read(self, request: Any) -> LeftOver:
        if not self.methods:
            raise DataError(
                "rtc: this policy does not support real-time chunking, as its server's metadata says. Omit 'rtc'"
            )
        # The keys.
        if not isinstance(request, Mapping):
            raise DataError(f"rtc: found a {type(request).__name__}, expected a dict with {list(_REQUIRED)}")
        problems = [f"'{key}' is missing" for key in _REQUIRED if key not in request]
        problems += [f"'{key!s:.40}' is unknown, expected some of {list(_KEYS)}" for key in request if key not in _KEYS]
        if problems:
            raise DataError(f"rtc: {', '.join(problems)}")
        # The values.
        actions = self._read_actions(request["left_over"])
        delay = _read_delay(request["delay"], len(actions))
        method = self._choose(request.get("method"), delay)
        schedule = request.get("schedule", rtc.SCHEDULES[0])
        if not isinstance(schedule, str) or schedule not in rtc.SCHEDULES:
            raise DataError(f"rtc: 'schedule' is {schedule!r:.40}, expected one of {list(rtc.SCHEDULES)}")
        return LeftOver(actions, delay, method, schedule, _read_weight(request.get("max_guidance_weight")))

    def _read_actions(self, value: Any) -> np.ndarray:
        try:
            actions = np.asarray(value)
        except ValueError as e:
            raise DataError("rtc: 'left_over' is a ragged list, expected rows of numbers") from e
        if actions.ndim != 2 or actions.dtype.kind not in "iuf" or not actions.shape[1]:
            raise DataError(f"rtc: 'left_over' is {actions.dtype} {list(actions.shape)}, expected rows of numbers")
        if not 1 <= len(actions) <= self._horizon:
            raise DataError(
                f"rtc: 'left_over' has {len(actions)} rows, expected 1 to {self._horizon}, those of a chunk"
            )
        if not np.isfinite(actions).all():
            raise DataError("rtc: 'left_over' is not finite, expected finite numbers")
        return actions.astype(np.float32)

    def _choose(self, method: Any, delay: int) -> rtc.Method:
        """Return the requested method, or the first that supports the delay."""
        allowed = [m for m in self.methods if m != "prefix" or delay <= self._max_prefix_delay]
        if method is None and allowed:
            return allowed[0]
        is_known = isinstance(method, str) and method in self.methods
        if is_known and method in allowed:
            return method
        if is_known or method is None:
            raise DataError(
                f"rtc: 'delay' is {delay}, but the model was trained for delays up to {self._max_prefix_delay} "
                "(method 'prefix'). Use another method, or make the connection to the server faster"
            )
        raise DataError(f"rtc: 'method' is {method!r:.40}, this server offers {list(self.methods)}")

    def guidance(self, left_over: LeftOver, rows: np.ndarray) -> rtc.Guidance:
        """Return the model's form of a left-over, a batch of one.

        Args:
            left_over: The request.
            rows: Its actions after the transforms (k, ad): normalized, relative where the model's are, padded.
        """
        is_vjp = left_over.method == "vjp"
        default = _VJP_MAX_WEIGHT if is_vjp else float(self._num_steps)
        target = np.zeros((1, self._horizon, rows.shape[-1]), np.float32)  # [1, ah, ad]
        target[0, : len(rows)] = rows
        return rtc.Guidance(
            target=target,
            num_left=np.array([len(rows)], np.int32),
            delay=np.array([left_over.delay], np.int32),
            schedule=np.array([rtc.SCHEDULES.index(left_over.schedule)], np.int32),
            max_weight=np.array([default if left_over.max_weight is None else left_over.max_weight], np.float32),
            prior_std=np.array([_VJP_PRIOR_STD if is_vjp else _IDENTITY_PRIOR_STD], np.float32),
            is_used=np.arange(rows.shape[-1])[None] < left_over.actions.shape[-1],
            method=left_over.method,
        )


def _read_delay(value: Any, num_rows: int) -> int:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not 0 <= value <= num_rows:
        raise DataError(
            f"rtc: 'delay' is {value!r:.40}, expected a whole number from 0 to {num_rows}, the rows of 'left_over'"
        )
    return int(value)


def _read_weight(value: Any) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _MAX_WEIGHT:
        raise DataError(
            f"rtc: 'max_guidance_weight' is {value!r:.40}, expected a number above 0, at most {_MAX_WEIGHT:g}"
        )
    return float(value)
