"""The path that commands take from target to target, within the limits.

No threads and no clock: time passes by one period of the commands at each `step`.
"""

import collections
import dataclasses

import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.robots.limits import CommandedMotion
from realman.robots.limits import StepLimits
from realman.robots.limits import limit_target

_MAX_WAITING = 2
"""Targets that may wait. When more arrive at once, the oldest are skipped."""
_ARRIVALS_WATCHED = 25
"""Arrivals from which the spare time is known: half a second at 50 Hz."""
_CATCH_UP_SHARE = 0.05
"""How much faster the path is walked to use up spare time."""
_ROUNDING = 1e-9
RESOLUTION_RAD = float(np.deg2rad(0.001))
"""Unit of the joints on the wire."""
_MIN_CHANGE_UNITS = 10
"""Steps that may change by fewer units are not rounded here. Keeping a unit free would take too much of the acceleration: a tenth
or more, and all of it at a limit of 240 deg/s^2 and 500 Hz, where the arms would never move."""


class WirePath:
    """Turns targets at one rate into commands at another.

    The commands walk along straight legs from target to target, one leg per period of the targets, with the corners
    rounded over that period. So a stream of targets inside the limits makes commands inside them, which lag by no more
    than a leg. Each command then keeps the limits by `limit_target`. Without a next target the
    commands brake, return to the last target and stay there.
    """

    def __init__(self, start: JointVec, limits: StepLimits, fps: float, rate_hz: float) -> None:
        """Start at rest.

        Args:
            start: Current position of the arms.
            limits: Limits of one command, at `rate_hz`.
            fps: Rate of the targets, Hz.
            rate_hz: Rate of the commands, Hz, at least `fps`.
        """
        self._limits = limits
        # Rounding to the unit of the wire changes a step by up to one unit, so as much is kept free for it.
        spared = limits.max_step_change.copy()
        self._rounded = [i for i in spec.JOINT_DIMS if spared[i] >= _MIN_CHANGE_UNITS * RESOLUTION_RAD]
        spared[self._rounded] -= RESOLUTION_RAD
        self._spared_limits = dataclasses.replace(limits, max_step_change=spared)
        self._share = fps / rate_hz
        self._leg_start = self._leg_end = np.array(start)
        self._done = 1.0
        """Share of the present leg that is walked."""
        self._waiting: collections.deque[JointVec] = collections.deque(maxlen=_MAX_WAITING)
        self._spare: collections.deque[float] = collections.deque(maxlen=_ARRIVALS_WATCHED)
        """How much of the path was still to be walked when each target arrived, in legs."""
        # The mean of the points of one leg rounds its corners: a change of speed is spread over a whole leg.
        num_points = max(1, round(rate_hz / fps))
        self._points = collections.deque([np.array(start)] * num_points, maxlen=num_points)
        self._motion = CommandedMotion.at_rest(np.array(start))

    @property
    def position(self) -> JointVec:
        """The last command."""
        return self._motion.position

    @property
    def is_at_rest(self) -> bool:
        """Whether further steps would change nothing."""
        is_walked = self._done >= 1.0 and not self._waiting
        is_there = all(np.abs(point - self._leg_end).max() <= _ROUNDING for point in self._points)
        is_still = not self._motion.is_moving and np.abs(self._motion.position - self._last).max() <= RESOLUTION_RAD
        return is_walked and is_there and bool(is_still)

    @property
    def _last(self) -> JointVec:
        return np.minimum(np.maximum(self._leg_end, self._limits.lower), self._limits.upper)

    def add(self, target: JointVec) -> None:
        """Take the next target."""
        # Targets may come early, late or several at once. What was spare at each of the last arrivals is never needed.
        self._spare.append(len(self._waiting) + 1.0 - self._done)
        if len(self._spare) == _ARRIVALS_WATCHED:
            spare = min(min(self._spare), _CATCH_UP_SHARE)
            self._walk(spare)
            self._spare = collections.deque((s - spare for s in self._spare), maxlen=_ARRIVALS_WATCHED)
        self._waiting.append(np.array(target))

    def step(self) -> JointVec:
        """Return the next command."""
        self._walk(self._share)
        self._points.append(self._leg_start + self._done * (self._leg_end - self._leg_start))
        wanted = np.mean(self._points, axis=0)
        command = self._on_grid(limit_target(wanted, self._motion, self._spared_limits).target)
        self._motion = CommandedMotion(command, command - self._motion.position, wanted)
        return command

    def _on_grid(self, command: JointVec) -> JointVec:
        """Round the joints to the unit of the wire, within the limits.

        Rounding after the limits would change the acceleration by up to 20 deg/s^2 at 100 Hz.
        """
        rounded, joints = command.copy(), self._rounded
        rounded[joints] = np.round(command[joints] / RESOLUTION_RAD) * RESOLUTION_RAD
        step = rounded - self._motion.position
        change = step - self._motion.step
        is_too_much = np.abs(change) > self._limits.max_step_change + _ROUNDING
        is_too_fast = np.abs(step) > self._limits.max_step + _ROUNDING
        back = np.where(is_too_fast, np.sign(step), np.where(is_too_much, np.sign(change), 0.0)) * RESOLUTION_RAD
        rounded[joints] -= back[joints]
        return rounded

    def stand(self) -> None:
        """Continue from rest, because the arms stopped at the last command."""
        self._motion = CommandedMotion(self._motion.position, np.zeros_like(self._motion.step), self._motion.target)

    def _walk(self, legs: float) -> None:
        """Walk a number of legs, up to the last target."""
        while legs > _ROUNDING:
            if self._done >= 1.0:
                if not self._waiting:
                    return
                self._leg_start, self._leg_end, self._done = self._leg_end, self._waiting.popleft(), 0.0
            part = min(legs, 1.0 - self._done)
            self._done = 1.0 if 1.0 - self._done - part < _ROUNDING else self._done + part
            legs -= part
