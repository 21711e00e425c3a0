"""Errors that a user can fix.

The message of each is one line: the place, what was found, what was expected, and a remedy.

    RealmanError
      +-- EpisodeError (also ValueError)   a recording is missing, damaged or contradicts its options
      +-- DatasetError (also ValueError)   a LeRobot dataset is missing, damaged or already exists
      +-- SiteError    (also ValueError)   the robot site's settings are wrong
      +-- FlagError                        a flag of a command is out of its range
      +-- RobotError                       the robot side
      |     +-- NotConnectedError          a call before connect() or after disconnect()
      |     +-- RobotTimeoutError          the robot or a camera did not answer in time
      |     +-- RejectedError              the robot, or a check in front of it, refused a motion
      +-- ServerError                      the policy server is unreachable, unexpected, or reported a failure
"""


class RealmanError(Exception):
    """Base of every error that a user of this package can fix.

    Commands print it as one line and exit with code 1.
    """


class EpisodeError(RealmanError, ValueError):
    """A recording is missing, damaged or contradicts its options."""


class DatasetError(RealmanError, ValueError):
    """A LeRobot dataset is missing, damaged or in the way."""


class SiteError(RealmanError, ValueError):
    """The settings of the robot site are wrong."""


class FlagError(RealmanError):
    """A number on the command line is out of its range.

    It is not a ValueError, because the parser of the flags would print one as a box of several lines.
    """


class RobotError(RealmanError):
    """The robot side failed."""


class NotConnectedError(RobotError):
    """A robot was used before `connect()` or after `disconnect()`."""


class RobotTimeoutError(RobotError, TimeoutError):
    """The robot or one of its cameras did not answer in time."""


class RejectedError(RobotError):
    """The robot, or a check in front of it, refused a motion."""


class ServerError(RealmanError):
    """The policy server is unreachable, unexpected, or reported a failure."""
