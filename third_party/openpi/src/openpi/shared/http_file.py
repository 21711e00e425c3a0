"""Fetches one file over HTTP and resumes interrupted downloads.

Downloads may be interrupted by broken connections and by killed programs.
"""

import base64
import dataclasses
import hashlib
import http.client
import json
import logging
import pathlib
import time
from typing import Any, BinaryIO
import urllib.error
import urllib.request

import tqdm

from openpi.shared import crc32c

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0
"""Longest silence of a server."""

_BLOCK_BYTES = 1 << 20
# Connections to try per file, and the pause after the first one breaks. Later pauses are longer.
_ATTEMPTS = 5
_PAUSE_S = 1.0


@dataclasses.dataclass(frozen=True)
class _Version:
    """What the server says about a file.

    It is stored next to the file, so that another process can resume.
    """

    url: str
    size: int | None = None
    # A strong validator: equal tags promise equal bytes.
    etag: str | None = None
    # Checksums (base64) and number of the version, from Google Cloud Storage. Not every file has an MD5.
    md5: str | None = None
    crc32c: str | None = None
    generation: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Name and value of the checksum to compare with, if known."""
        known = (("MD5", self.md5), ("CRC-32C", self.crc32c))
        return next(((name, value) for name, value in known if value is not None), None)

    def new_digest(self) -> Any:
        """Return the hash object that computes that checksum."""
        return crc32c.Crc32c() if self.md5 is None and self.crc32c is not None else hashlib.md5(usedforsecurity=False)


def fetch(
    url: str, target: pathlib.Path, note: pathlib.Path, progress: tqdm.tqdm, *, generation: str | None = None
) -> None:
    """Fetch a file, resuming an earlier attempt if the server can.

    Args:
        url: Address of the file.
        target: File to write. After an error, it holds what has arrived.
        note: File that records which version that is. Only this function uses it.
        progress: Advanced by every byte.
        generation: Version to fetch, if the store numbers its versions.

    Raises:
        OSError: The download is incomplete, or its checksum is wrong. A file with a wrong checksum is deleted.
        HTTPError: The server refuses the request, for example with "not found".
    """
    # Keep what has arrived only if it is the start of the wanted version.
    known = _read_note(note, url)
    if known is None or (generation is not None and known.generation != generation):
        target.unlink(missing_ok=True)
        known = _Version(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a+b") as file:
        download = _Download(known, file, note, progress)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                download.resume()
            except (OSError, http.client.HTTPException) as e:
                if isinstance(e, urllib.error.HTTPError) and e.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    target.unlink()
                    raise
                if attempt == _ATTEMPTS or not download.can_resume:
                    raise
                logger.warning("%s: %s, resuming after %d bytes", url, e, file.tell())
                time.sleep(attempt * _PAUSE_S)
            else:
                break
        try:
            download.check()
        except OSError:
            target.unlink()
            note.unlink(missing_ok=True)
            raise


def _read_note(note: pathlib.Path, url: str) -> _Version | None:
    try:
        version = _Version(**json.loads(note.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == url else None


class _Download:
    """One file on its way, over one or several connections."""

    def __init__(self, version: _Version, file: BinaryIO, note: pathlib.Path, progress: tqdm.tqdm) -> None:
        """Continue with what `file` holds of `version`."""
        self._version = version
        self._file = file
        self._note = note
        self._progress = progress
        self._digest = version.new_digest()
        file.seek(0)
        while block := file.read(_BLOCK_BYTES):
            self._digest.update(block)
        if file.tell():
            logger.info("%s: resuming after %d bytes that arrived earlier", version.url, file.tell())
            progress.update(file.tell())

    @property
    def can_resume(self) -> bool:
        """Whether the server can send just the rest of what has arrived.

        It needs the tag of the version to check that the rest belongs to it.
        """
        return self._file.tell() > 0 and self._version.etag is not None

    def resume(self) -> None:
        """Read to the end over a new connection, unless everything has arrived.

        Raises:
            OSError: The connection broke off.
        """
        if self._file.tell() and self._file.tell() == self._version.size:
            return
        headers: dict[str, str] = {}
        if self.can_resume and self._version.etag is not None:
            headers = {"Range": f"bytes={self._file.tell()}-", "If-Range": self._version.etag}
        request = urllib.request.Request(self._version.url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                self._begin(response.headers)
            while block := response.read1(_BLOCK_BYTES):
                self._file.write(block)
                self._digest.update(block)
                self._progress.update(len(block))
        # A connection that breaks off looks like the end of the file.
        size = self._version.size
        if size is not None and self._file.tell() != size:
            raise OSError(f"connection broke off after {self._file.tell()} of {size} bytes")

    def check(self) -> None:
        """Compare the bytes with the server's checksum, if it gave one.

        Google Cloud Storage does.

        Raises:
            OSError: The checksums differ.
        """
        if self._version.checksum is None:
            return
        name, expected = self._version.checksum
        found = base64.b64encode(self._digest.digest()).decode()
        if found != expected:
            raise OSError(f"found {name} {found} of {self._file.tell()} bytes, expected {expected}")

    def _begin(self, headers: http.client.HTTPMessage) -> None:
        """Start at the first byte and note the server's version.

        This also happens when the server does not resume, or when the file has changed meanwhile.
        """
        self._progress.update(-self._file.tell())
        self._file.seek(0)
        self._file.truncate()
        etag, length = headers.get("ETag"), headers.get("Content-Length")
        sums = [part.strip() for part in ",".join(headers.get_all("x-goog-hash", [])).split(",")]
        self._version = _Version(
            self._version.url,
            size=None if length is None else int(length),
            # A weak tag ("W/...") does not promise equal bytes.
            etag=None if etag is None or etag.startswith("W/") else etag,
            md5=next((part.removeprefix("md5=") for part in sums if part.startswith("md5=")), None),
            crc32c=next((part.removeprefix("crc32c=") for part in sums if part.startswith("crc32c=")), None),
            generation=headers.get("x-goog-generation"),
        )
        self._digest = self._version.new_digest()
        if self._progress.total is None:
            self._progress.total = self._version.size
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._note.write_text(json.dumps(dataclasses.asdict(self._version)))
