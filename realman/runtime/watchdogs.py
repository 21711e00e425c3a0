"""What ends a run because time went wrong: old observations, old predictions, a loop that cannot keep its rate.

The driver has its own, at every tick: age of each arm's state, gripper and camera, and arms that do not follow.
"""

from realman.errors import RobotTimeoutError
from realman.runtime.safety import SafetySettings

_LATE_S = 0.002
"""A tick that is later than this counts as a late one, s."""


class Watchdogs:
    """Checks of one run; None switches one off. All raise `RobotTimeoutError`."""

    def __init__(
        self,
        max_observation_age_s: float | None = None,
        max_policy_age_s: float | None = None,
        max_overrun_s: float | None = None,
        max_late_ticks: int | None = None,
    ) -> None:
        """Set the limits.

        Args:
            max_observation_age_s: Oldest observation to predict from, s.
            max_policy_age_s: Oldest observation behind a target, s: how long the arms may move without a look.
            max_overrun_s: Largest delay of one tick, s.
            max_late_ticks: Late ticks in a row.
        """
        self._max_observation_age_s = max_observation_age_s
        self._max_policy_age_s = max_policy_age_s
        self._max_overrun_s = max_overrun_s
        self._max_late_ticks = max_late_ticks
        self._late_in_a_row = 0

    @classmethod
    def from_settings(cls, settings: SafetySettings) -> "Watchdogs":
        """Take a site's limits, for a robot in real time."""
        return cls(
            settings.max_observation_age_ms / 1000,
            settings.max_policy_age_ms / 1000,
            settings.max_overrun_ms / 1000,
            settings.max_late_ticks,
        )

    def check_observation_age(self, age_s: float) -> None:
        """Refuse to predict from what is no longer so."""
        _check("observation", age_s, self._max_observation_age_s, "check the cameras and the arms' state push")

    def check_policy_age(self, age_s: float) -> None:
        """Refuse to move on a plan made too long ago."""
        _check("prediction", age_s, self._max_policy_age_s, "is the policy server too slow, or the network cut?")

    def check_lateness(self, late_s: float) -> None:
        """Refuse to go on when this machine cannot keep the rate: speeds are limited per tick."""
        _check("control loop", late_s, self._max_overrun_s, "is this machine busy, or was it suspended?", verb="late")
        self._late_in_a_row = self._late_in_a_row + 1 if late_s > _LATE_S else 0
        if self._max_late_ticks is not None and self._late_in_a_row > self._max_late_ticks:
            raise RobotTimeoutError(
                f"control loop: {self._late_in_a_row} steps in a row were late (at most {self._max_late_ticks} allowed); "
                "end other programs, or choose a lower rate"
            )


def _check(what: str, found_s: float, limit_s: float | None, remedy: str, *, verb: str = "old") -> None:
    if limit_s is not None and found_s > limit_s:
        raise RobotTimeoutError(
            f"{what}: {found_s * 1000:.0f} ms {verb}, at most {limit_s * 1000:.0f} ms allowed; {remedy}"
        )
