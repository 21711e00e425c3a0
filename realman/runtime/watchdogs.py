"""Checks that end a run when its timing fails.

They refuse old observations, old predictions, a loop that cannot keep its rate, and a machine that was suspended. At every tick the driver has checks
of its own: the age of each arm's state, of each gripper and camera, and arms that do not follow.
"""

from realman.errors import RobotTimeoutError
from realman.pacing import SuspendWatch
from realman.runtime.safety import SafetySettings

_LATE_S = 0.002
"""A tick with a larger delay than this counts as late, s."""


class Watchdogs:
    """The timing checks of one run.

    A limit of None turns its check off. All checks raise `RobotTimeoutError`.
    """

    def __init__(
        self,
        max_observation_age_s: float | None = None,
        max_policy_age_s: float | None = None,
        max_overrun_s: float | None = None,
        max_late_ticks: int | None = None,
        suspend_watch: SuspendWatch | None = None,
    ) -> None:
        """Set the limits.

        Args:
            max_observation_age_s: Largest age of an observation to predict from, s.
            max_policy_age_s: Largest age of the observation behind a target, s. It bounds how long the arms move
                without a new prediction.
            max_overrun_s: Largest delay of one tick, s.
            max_late_ticks: Largest number of late ticks in a row.
            suspend_watch: Notices a suspended machine.
        """
        self._max_observation_age_s = max_observation_age_s
        self._max_policy_age_s = max_policy_age_s
        self._max_overrun_s = max_overrun_s
        self._max_late_ticks = max_late_ticks
        self._suspend_watch = suspend_watch
        self._late_in_a_row = 0

    @classmethod
    def from_settings(cls, settings: SafetySettings) -> "Watchdogs":
        """Return the checks of a site whose robot runs in real time."""
        return cls(
            settings.max_observation_age_ms / 1000,
            settings.max_policy_age_ms / 1000,
            settings.max_overrun_ms / 1000,
            settings.max_late_ticks,
            SuspendWatch(),
        )

    def check_awake(self) -> None:
        """Refuse to send another target after the machine was suspended.

        This also ends a paused run, because nobody watched the arms meanwhile.
        """
        if self._suspend_watch:
            self._suspend_watch.check("control loop")

    def check_observation_age(self, age_s: float) -> None:
        """Refuse to predict from an outdated observation."""
        _check("observation", age_s, self._max_observation_age_s, "Check the cameras and the arms' state push")

    def check_policy_age(self, age_s: float) -> None:
        """Refuse to move on a plan made too long ago."""
        _check("prediction", age_s, self._max_policy_age_s, "Check the speed of the policy server and the network")

    def check_lateness(self, late_s: float) -> None:
        """Refuse to continue when this machine cannot keep the rate.

        The speed limits are computed per tick, so they hold only at this rate.

        A stopped process (SIGSTOP) and a paused virtual machine are noticed as late. A suspended machine is noticed by
        `check_awake`.
        """
        remedy = "Check whether this machine is busy, or whether it or this process was paused"
        _check("control loop", late_s, self._max_overrun_s, remedy, adjective="late")
        self._late_in_a_row = self._late_in_a_row + 1 if late_s > _LATE_S else 0
        if self._max_late_ticks is not None and self._late_in_a_row > self._max_late_ticks:
            raise RobotTimeoutError(
                f"control loop: {self._late_in_a_row} steps in a row were late, expected at most "
                f"{self._max_late_ticks}. End other programs, or choose a lower rate"
            )


def _check(what: str, found_s: float, limit_s: float | None, remedy: str, *, adjective: str = "old") -> None:
    # Written so that an age or a limit that is not a number fails the check.
    if limit_s is not None and not found_s <= limit_s:
        raise RobotTimeoutError(
            f"{what}: {found_s * 1000:.0f} ms {adjective}, expected at most {limit_s * 1000:.0f} ms. {remedy}"
        )
