"""Errors that you can fix.

Scripts print them as one line and exit with status 1. Any other error is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Something in the user's data, flags or files is wrong.

    The message says what is wrong, where, and what to do.
    """


class ConfigError(UserError, ValueError):
    """A training configuration is unknown or contradicts itself."""


class OutOfRangeError(UserError):
    """A number of a config or flag is out of range.

    It is not a ValueError, because the parser of the flags would print one as a box of several lines.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist."""


class DataError(UserError, ValueError):
    """A dataset, checkpoint or observation does not have the expected content."""
