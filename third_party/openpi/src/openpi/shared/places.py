"""Refuse a run whose results could not be written."""

import pathlib

from openpi.shared import errors
from openpi_client import places


def check(folder: pathlib.Path, flag: str) -> None:
    """Check that a folder can be written, or made and written.

    Args:
        folder: The folder. It may be missing, and nothing is left behind.
        flag: The flag that chooses another one.

    Raises:
        ConfigError: It cannot be written.
    """
    if found := places.problem(folder):
        raise errors.ConfigError(f"{folder}: cannot be written ({found}). Choose another folder with {flag}")
