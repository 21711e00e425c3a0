"""Try whether a folder can be written.

Do it before hours of work depend on it.
"""

import os
import pathlib
import tempfile

# A full disk takes the entry of a file, but not its content.
_PROBE = bytes(4096)


def problem(folder: pathlib.Path) -> str | None:
    """Return why nothing could be written into a folder, or None.

    The folder may be missing. Then its nearest parent is tried, and nothing is left behind.
    """
    try:
        place = folder.absolute()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            return f"{place} is not a folder"
        with tempfile.NamedTemporaryFile(prefix=".probe-", dir=place) as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        return f"{e.strerror or e}"
    return None
