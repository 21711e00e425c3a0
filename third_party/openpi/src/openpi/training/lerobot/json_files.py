"""Read the JSON files of a dataset of any writer."""

import json
import pathlib
from typing import Any

from openpi.shared import errors

_REMEDY = "Copy the dataset again, or convert its recordings again with 'make convert'"


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        MissingFileError: The file does not exist.
        DataError: It holds anything else.
    """
    content = _parse(_read_text(path), path)
    if not isinstance(content, dict):
        raise errors.DataError(f"{path}: found {type(content).__name__}, expected a JSON object. {_REMEDY}")
    return content


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line.

    A line ends with a newline, with or without a carriage return. Texts may hold every other separator. A byte order
    mark and blank lines are skipped.

    Raises:
        MissingFileError: The file does not exist.
        DataError: A line holds anything else.
    """
    lines = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            content = _parse(line, f"{path}, line {number}")
            if not isinstance(content, dict):
                raise errors.DataError(
                    f"{path}, line {number}: found {type(content).__name__}, expected a JSON object. {_REMEDY}"
                )
            lines.append(content)
    return lines


def whole_number(line: dict[str, Any], key: str, place: pathlib.Path) -> int:
    """Return the whole number of a line's key.

    Writers store it as 3, 3.0 or [3].

    Raises:
        DataError: The key is missing or holds anything else.
    """
    value = as_whole(line.get(key))
    if value is None:
        found = f"'{key}' {json.dumps(line[key])}" if key in line else f"no '{key}' among {sorted(line)}"
        raise errors.DataError(f"{place}: found {found}, expected a whole number in each line. {_REMEDY}")
    return value


def as_whole(value: Any) -> int | None:
    """Return a whole number that is written as 3, 3.0 or [3].

    Everything else gives None.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _read_text(path: pathlib.Path) -> str:
    try:
        # Some editors begin the file with a byte order mark.
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as e:
        raise errors.MissingFileError(f"{path}: file is missing. {_REMEDY}") from e
    except UnicodeDecodeError as e:
        raise errors.DataError(f"{path}: is not UTF-8 text ({e.reason} at byte {e.start}). {_REMEDY}") from e


def _parse(text: str, place: pathlib.Path | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise errors.DataError(f"{place}: not valid JSON ({e}). {_REMEDY}") from e
