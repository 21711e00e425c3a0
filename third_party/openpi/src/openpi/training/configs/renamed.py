"""Translate former names of config fields, in stored runs and flags."""

from collections.abc import Mapping, Sequence
import logging
import re
from typing import Any

logger = logging.getLogger(__name__)

# From the former name of a field to its name today. Runs and shell scripts of earlier releases use the former one.
RENAMED_FIELDS = {"keep_pictures": "keep_images"}

# A flag with a former name as the last part of its path: with dashes or underscores, negated or with "=value" or not.
_FLAG = re.compile(
    rf"(?P<path>--(?:[\w-]+\.)*(?:no[-_])?)(?P<name>{'|'.join(RENAMED_FIELDS).replace('_', '[-_]')})(?P<value>=.*)?"
)


def rename_fields(stored: Any) -> Any:
    """Return a stored config, as JSON holds it, with today's names."""
    if isinstance(stored, Mapping):
        return {RENAMED_FIELDS.get(key, key): rename_fields(value) for key, value in stored.items()}
    if isinstance(stored, list):
        return [rename_fields(value) for value in stored]
    return stored


def rename_flags(flags: Sequence[str]) -> list[str]:
    """Return command-line words with today's names of flags.

    Each former name is logged as a warning.
    """
    return [_rename_flag(flag) for flag in flags]


def _rename_flag(flag: str) -> str:
    match = _FLAG.fullmatch(flag)
    if match is None:
        return flag
    name = RENAMED_FIELDS[match["name"].replace("-", "_")].replace("_", "-")
    renamed = f"{match['path']}{name}{match['value'] or ''}"
    logger.warning("%s is now called %s. Use the new name.", flag, renamed)
    return renamed
