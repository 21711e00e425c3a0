"""Remote files and folders, kept in a local cache.

The cache is `$OPENPI_DATA_HOME` or `~/.cache/openpi`, and `gs://bucket/a/b` is kept at `<cache>/bucket/a/b`. A download goes to
a folder of its own. It moves into place when it is complete and its checksum is right, so the cache never holds a partial file.
A download that broke off or was killed resumes where it ended. With `OPENPI_OFFLINE=1` nothing is fetched. `gs://` needs no
extra package, because public buckets are read over https.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime as dt
import fcntl
import hashlib
import http.client
import importlib.util
import json
import logging
import os
import pathlib
import shutil
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

import tqdm

from openpi.shared import errors
from openpi.shared import http_file

logger = logging.getLogger(__name__)

CACHE_ENV = "OPENPI_DATA_HOME"
OFFLINE_ENV = "OPENPI_OFFLINE"
GCS_ENV = "STORAGE_EMULATOR_HOST"
"""Address of Google Cloud Storage, if not the usual one: a mirror, or a test's own server. The name is Google's."""

_DEFAULT_CACHE_DIR = "~/.cache/openpi"
_GCS_URL = "https://storage.googleapis.com"

_STALE_BEFORE = {
    "openpi-assets/checkpoints/pi0_aloha_pen_uncap": dt.datetime(2025, 2, 17, tzinfo=dt.UTC),
    "openpi-assets/checkpoints/pi0_libero": dt.datetime(2025, 2, 6, tzinfo=dt.UTC),
    "openpi-assets/checkpoints/": dt.datetime(2025, 2, 3, tzinfo=dt.UTC),
}
"""Checkpoints that were published again on these days. The first matching prefix counts."""


def get_cache_dir() -> pathlib.Path:
    """Return the cache folder, and create it if it is missing."""
    try:
        cache_dir = pathlib.Path(os.environ.get(CACHE_ENV) or _DEFAULT_CACHE_DIR).expanduser().resolve()
        cache_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as e:  # a container's user may have no home, or may not write there
        reason = getattr(e, "strerror", None) or "no home directory"
        raise errors.UserError(
            f"{os.environ.get(CACHE_ENV) or _DEFAULT_CACHE_DIR}: downloads cannot be kept there ({reason}). "
            f"Set {CACHE_ENV} to a folder that you can write"
        ) from e
    return cache_dir


def maybe_download(url: str, *, force_download: bool = False, **kwargs: Any) -> pathlib.Path:
    """Return the local path of a file or folder.

    A remote one is fetched into the cache if it is not there yet.

    Args:
        url: A local path, `file://`, `http(s)://`, `gs://`, or any URL that an installed fsspec backend reads.
        force_download: Fetch it even if it is in the cache.
        **kwargs: Options of the fsspec backend, for example `gs={"token": "anon"}`.

    Raises:
        MissingFileError: The local path or the remote file does not exist (also a FileNotFoundError).
        UserError: The download is needed and fails. The message names the path in the cache where you may put the file.
    """
    parsed = urllib.parse.urlparse(url)
    if parsed.scheme in ("", "file"):
        path = pathlib.Path(urllib.request.url2pathname(parsed.path) if parsed.scheme else url).expanduser()
        if not path.exists():
            raise errors.MissingFileError(f"{url}: no such file or folder")
        return path.resolve()

    cache_dir = get_cache_dir()
    path = _cache_path(cache_dir, parsed)
    if not force_download and _is_fresh(cache_dir, path):
        return path
    if os.environ.get(OFFLINE_ENV, "0") not in ("", "0"):
        raise errors.UserError(
            f"{url}: not in the cache or out of date, and {OFFLINE_ENV} is set. Put it at '{path}' ({_cache_hint()})"
        )
    with _exclusive(cache_dir, path) as part:
        # Another process may have fetched it while this one waited.
        if not force_download and _is_fresh(cache_dir, path):
            return path
        logger.info("downloading %s to %s", url, path)
        try:
            _fetch(url, parsed, part, kwargs)
        except errors.MissingFileError:
            part.remove()
            raise
        except errors.UserError:
            raise
        except (OSError, http.client.HTTPException, ImportError, ValueError) as e:
            raise errors.UserError(
                f"{url}: download failed ({type(e).__name__}: {e}). {part.describe()} or put it at '{path}' ({_cache_hint()})"
            ) from e
        _replace(part.content, path)
        part.remove()
    return path


@dataclasses.dataclass(frozen=True)
class _Part:
    """An unfinished download: its content and notes about its files."""

    folder: pathlib.Path

    @property
    def content(self) -> pathlib.Path:
        """The file or folder that will move into place."""
        return self.folder / "content"

    def note_of(self, url: str) -> pathlib.Path:
        """Return where `http_file` keeps its note about a file."""
        return self.folder / "notes" / hashlib.sha256(url.encode()).hexdigest()[:32]

    def describe(self) -> str:
        """Return the advice to try again, for an error message."""
        files = [self.content] if self.content.is_file() else self.content.rglob("*")
        arrived = sum(path.stat().st_size for path in files if path.is_file())
        return f"{arrived / 1e6:.1f} MB have arrived and are kept. Try again" if arrived else "Try again"

    def remove(self) -> None:
        """Delete the content and the notes."""
        _remove(self.folder)


def _cache_hint() -> str:
    return f"{CACHE_ENV} chooses another cache folder"


def _cache_path(cache_dir: pathlib.Path, parsed: urllib.parse.ParseResult) -> pathlib.Path:
    """Return the path of a URL below the cache folder."""
    parts = [parsed.netloc, *parsed.path.split("/")]
    parts = [part for part in parts if part not in ("", ".")]
    if len(parts) < 2 or ".." in parts or not parsed.netloc or parsed.netloc.startswith("."):
        raise errors.UserError(f"{parsed.geturl()}: not a URL of a remote file, expected scheme://host/path")
    return cache_dir.joinpath(*parts)


def _is_fresh(cache_dir: pathlib.Path, path: pathlib.Path) -> bool:
    """Return whether the cache holds the published version of `path`."""
    if not path.exists():
        return False
    relative = path.relative_to(cache_dir).as_posix()
    changed = dt.datetime.fromtimestamp(path.stat().st_mtime, tz=dt.UTC)
    for prefix, published in _STALE_BEFORE.items():
        if relative.startswith(prefix):
            return changed > published
    return True


@contextlib.contextmanager
def _exclusive(cache_dir: pathlib.Path, path: pathlib.Path) -> Iterator[_Part]:
    """Keep other processes from fetching the same path.

    Yields:
        The unfinished download.
    """
    work_dir = cache_dir / ".downloads"  # no host name starts with a dot
    work_dir.mkdir(exist_ok=True)
    key = hashlib.sha256(path.relative_to(cache_dir).as_posix().encode()).hexdigest()[:32]
    with (work_dir / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part = _Part(work_dir / f"{key}.partial")
        part.folder.mkdir(exist_ok=True)
        yield part


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(part: pathlib.Path, path: pathlib.Path) -> None:
    """Move a complete download into place and delete an old version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(path)
    part.rename(path)


def _fetch(url: str, parsed: urllib.parse.ParseResult, part: _Part, options: dict[str, Any]) -> None:
    # A token other than "anon" is for a private bucket, and only gcsfs can log in to one.
    is_public = options.get("gs", {}).get("token", "anon") == "anon"
    if parsed.scheme == "gs" and is_public:
        try:
            _fetch_gcs(parsed.netloc, parsed.path.strip("/"), part)
        except urllib.error.HTTPError as e:
            if e.code not in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
                raise
            _remove(part.content)
            _fetch_private_gcs(url, part.content)
    elif parsed.scheme in ("http", "https"):
        _fetch_http(part, {url: _Object(part.content)})
    else:
        _remove(part.content)
        _fetch_fsspec(url, part.content, options)


@dataclasses.dataclass(frozen=True)
class _Object:
    """A file to fetch, and what the listing says about it."""

    target: pathlib.Path
    size: int = 0
    generation: str | None = None


def _fetch_gcs(bucket: str, name: str, part: _Part) -> None:
    """Fetch an object or a whole folder of a public bucket."""
    base = os.environ.get(GCS_ENV) or _GCS_URL
    base = (base if "://" in base else f"http://{base}").rstrip("/")
    # A folder here means that an earlier attempt already found out that the name is a folder.
    if not part.content.is_dir():
        with contextlib.suppress(errors.MissingFileError):
            _fetch_http(part, {f"{base}/{bucket}/{urllib.parse.quote(name)}": _Object(part.content)})
            return
    folder = f"{name}/"
    # Names that end in "/" are placeholders of empty folders.
    listed = [item for item in _list_gcs(base, bucket, folder) if not item["name"].endswith("/")]
    if not listed:
        raise errors.MissingFileError(f"gs://{bucket}/{name}: no such file or folder")
    objects = {
        f"{base}/{bucket}/{urllib.parse.quote(item['name'])}": _Object(
            part.content / item["name"].removeprefix(folder).lstrip("/"), int(item["size"]), item.get("generation")
        )
        for item in listed
    }
    targets = {obj.target for obj in objects.values()}
    if any(".." in target.parts for target in targets):
        raise errors.DataError(f"gs://{bucket}/{name}: an object's name points outside its folder")
    _fetch_http(part, objects, total_bytes=sum(obj.size for obj in objects.values()))
    for path in part.content.rglob("*"):
        if path.is_file() and path not in targets:
            path.unlink()  # from an older version of the folder


def _list_gcs(base: str, bucket: str, prefix: str) -> Iterator[dict[str, str]]:
    """Yield name, size and generation of every object below a prefix.

    The listing is `objects.list` of Google Cloud Storage's JSON API.
    """
    query = {"prefix": prefix, "fields": "items(name,size,generation),nextPageToken"}
    while True:
        url = f"{base}/storage/v1/b/{urllib.parse.quote(bucket, safe='')}/o?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=http_file.TIMEOUT_S) as response:
            page = json.load(response)
        yield from page.get("items", ())
        if "nextPageToken" not in page:
            return
        query["pageToken"] = page["nextPageToken"]


def _fetch_http(part: _Part, objects: dict[str, _Object], total_bytes: int | None = None) -> None:
    """Fetch files by URL, with a progress bar over all bytes."""
    with tqdm.tqdm(total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as progress:
        for number, (url, wanted) in enumerate(objects.items(), start=1):
            progress.set_description(f"file {number}/{len(objects)}")
            try:
                http_file.fetch(url, wanted.target, part.note_of(url), progress, generation=wanted.generation)
            except urllib.error.HTTPError as e:
                if e.code == http.HTTPStatus.NOT_FOUND:
                    raise errors.MissingFileError(f"{url}: no such file on the server") from e
                raise


def _fetch_private_gcs(url: str, part: pathlib.Path) -> None:
    if importlib.util.find_spec("gcsfs") is None:
        raise errors.MissingFileError(
            f"{url}: its bucket is not public. Run 'pip install gcsfs' and 'gcloud auth application-default login'"
        )
    _fetch_fsspec(url, part, {})


def _fetch_fsspec(url: str, part: pathlib.Path, options: dict[str, Any]) -> None:
    import fsspec.core

    fs, path = fsspec.core.url_to_fs(url, **options)
    fs.get(path, str(part), recursive=fs.isdir(path))
