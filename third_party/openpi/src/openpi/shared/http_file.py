"""Fetching one file over HTTP: whole, in spite of connections that break off."""

import base64
import hashlib
import http.client
import logging
import pathlib
import time
from typing import BinaryIO
import urllib.error
import urllib.request

import tqdm

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0
"""Longest silence of a server."""

_BLOCK_BYTES = 1 << 20
# Connections tried for one file, and the pause after the first that broke off; later pauses are longer.
_ATTEMPTS = 5
_PAUSE_S = 1.0


def fetch(url: str, target: pathlib.Path, progress: tqdm.tqdm) -> None:
    """Fetch a file; where the server can, a connection that breaks off is taken up where it ended, a few times.

    Raises:
        OSError: The file could not be fetched whole, or its checksum is wrong (what has arrived is left at `target`); for
            an answer like "not found" an HTTPError, and nothing is left.
    """
    with target.open("wb") as file:
        download = _Download(url, file, progress)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                download.go_on()
            except urllib.error.HTTPError:
                target.unlink()
                raise
            except (OSError, http.client.HTTPException) as e:
                if attempt == _ATTEMPTS or not download.can_resume:
                    raise
                logger.warning("%s: %s; going on after %d bytes", url, e, file.tell())
                time.sleep(attempt * _PAUSE_S)
            else:
                download.check()
                return


class _Download:
    """One file on its way, over one or several connections."""

    def __init__(self, url: str, file: BinaryIO, progress: tqdm.tqdm) -> None:
        self._url = url
        self._file = file
        self._progress = progress
        self._version: str | None = None
        self._md5: str | None = None
        self._digest = hashlib.md5(usedforsecurity=False)

    @property
    def can_resume(self) -> bool:
        """Whether something has arrived, and the server can tell that the rest belongs to it."""
        return self._file.tell() > 0 and self._version is not None

    def go_on(self) -> None:
        """Read to the end over a new connection.

        Raises:
            OSError: The connection broke off.
        """
        headers = {"Range": f"bytes={self._file.tell()}-", "If-Range": self._version} if self.can_resume else {}
        with urllib.request.urlopen(urllib.request.Request(self._url, headers=headers), timeout=TIMEOUT_S) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                self._begin(response.headers)
            expected = response.headers.get("Content-Length")
            size = None if expected is None else self._file.tell() + int(expected)
            if self._progress.total is None:
                self._progress.total = size
            while block := response.read(_BLOCK_BYTES):
                self._file.write(block)
                self._digest.update(block)
                self._progress.update(len(block))
        # A connection that breaks off looks like the end of the file.
        if size is not None and self._file.tell() != size:
            raise OSError(f"connection broke off after {self._file.tell()} of {size} bytes")

    def check(self) -> None:
        """Compare with the checksum that the server gave (Google Cloud Storage does).

        Raises:
            OSError: What has arrived is something else.
        """
        found = base64.b64encode(self._digest.digest()).decode()
        if self._md5 is not None and found != self._md5:
            raise OSError(f"found MD5 {found} of {self._file.tell()} bytes, expected {self._md5}")

    def _begin(self, headers: http.client.HTTPMessage) -> None:
        """Start at the first byte, also when the server does not resume or the file has changed meanwhile."""
        self._progress.update(-self._file.tell())
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.md5(usedforsecurity=False)
        version = headers.get("ETag")
        # A weak tag ("W/...") does not promise equal bytes.
        self._version = None if version is None or version.startswith("W/") else version
        sums = ",".join(headers.get_all("x-goog-hash", [])).split(",")
        self._md5 = next((part.strip().removeprefix("md5=") for part in sums if part.strip().startswith("md5=")), None)
