"""Errors that a user can mend: scripts print them as one line, exit status 1. Anything else is a bug and keeps its traceback."""


class UserError(Exception):
    """Something in the user's data, flags or files is wrong; the message says what, where, and what to do."""


class ConfigError(UserError, ValueError):
    """A training configuration is unknown or contradicts itself."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class DataError(UserError, ValueError):
    """A dataset, checkpoint or observation does not have the expected content."""
