import base64
import contextlib
import hashlib
import http.server
import json
import multiprocessing
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from openpi.shared import crc32c
from openpi.shared import download
from openpi.shared import errors
from openpi.shared import http_file
from openpi.shared.crc32c import Crc32c

OBJECTS = {
    "tokenizer.model": b"a tokenizer",
    "tokenizer": b"another file whose name differs in the suffix only",
    "runs/7/params/_METADATA": b"{}",
    "runs/7/params/d/0 1+": b"x" * 3_000_000,
    "runs/7/params/empty/": b"",
    "runs/7/params_old/d": b"not wanted",
}


SHAKY = bytes(range(250)) * 4000
HALF = 500_000


def md5(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


class BucketHandler(http.server.BaseHTTPRequestHandler):
    """Answers as Google Cloud Storage does: objects by path, lists of two names per page."""

    def do_GET(self):
        self.server.requests.append(self.path)
        url = urllib.parse.urlparse(self.path)
        if url.path == "/storage/v1/b/bucket/o":
            self.answer(json.dumps(self.list_page(urllib.parse.parse_qs(url.query))).encode())
        elif url.path == "/bucket/broken":
            self.answer(b"half", claimed_length=8)
        elif url.path in ("/bucket/shaky", "/bucket/changing"):
            self.answer_in_pieces()
        elif url.path == "/bucket/stalling":
            self.answer_half_and_wait()
        elif url.path.startswith("/closed/"):
            self.send_error(403 if "listed" in url.path else 401)
        elif url.path == "/bucket/spoilt":
            self.answer(b"spoilt", checksum=f"md5={md5(b'whole')}")
        elif url.path.startswith("/bucket/composite"):
            # Objects uploaded in parts have no MD5. The value is from the example of the specification.
            self.answer(b"123456789", checksum="crc32c=" + ("4waSgw==" if url.path.endswith("whole") else "4waSgA=="))
        else:
            self.answer(OBJECTS.get(urllib.parse.unquote(url.path).removeprefix("/bucket/")))

    def list_page(self, query):
        names = [name for name in sorted(OBJECTS) if name.startswith(query["prefix"][0])]
        start = int(query.get("pageToken", ["0"])[0])
        page = {"items": [{"name": name, "size": str(len(OBJECTS[name]))} for name in names[start : start + 2]]}
        return page | ({"nextPageToken": str(start + 2)} if start + 2 < len(names) else {})

    def answer_in_pieces(self):
        """Break off after 400,000 bytes. The object "changing" is another version each time."""
        etag = f'"{len(self.server.requests) if self.path.endswith("changing") else 0}"'
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        is_rest = self.headers.get("If-Range") == etag
        rest = SHAKY[start if is_rest else 0 :]
        self.send_response(206 if is_rest else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", etag)
        self.send_header("x-goog-hash", "crc32c=AAAAAA==")
        self.send_header("x-goog-hash", f"md5={md5(SHAKY)}")
        self.end_headers()
        self.wfile.write(rest[:400_000])

    def answer_half_and_wait(self):
        """Send half of it, and the other half when the test allows it."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.requests[-1] += f" from {start}"
        assert start == 0 or self.headers["If-Range"] == '"1"'
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(SHAKY) - start))
        self.send_header("ETag", '"1"')
        self.send_header("x-goog-hash", f"md5={md5(SHAKY)}")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(SHAKY[start : max(start, HALF)])
            self.server.go_on.wait(60)
            self.wfile.write(SHAKY[max(start, HALF) :])

    def answer(self, body, claimed_length=None, checksum=None):
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(claimed_length or len(body or b"")))
        if checksum is not None:
            self.send_header("x-goog-hash", checksum)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BucketHandler) as server:
        server.requests = []
        server.go_on = threading.Event()
        server.go_on.set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENPI_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def bucket(server, cache, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    return server


def test_local_paths_and_file_urls_come_back_absolute_without_a_copy(tmp_path, cache, monkeypatch):
    path = tmp_path / "a file"
    path.write_text("x")
    monkeypatch.chdir(tmp_path)
    assert download.maybe_download("a file") == path
    assert download.maybe_download(path.as_uri()) == path
    assert not cache.exists()


@pytest.mark.parametrize("url", ["no/such/file", "file:///no/such/file"])
def test_a_missing_local_path_is_named(url):
    with pytest.raises(FileNotFoundError, match=f"{url}: no such file"):
        download.maybe_download(url)


def test_a_file_is_fetched_once_and_again_only_when_forced(bucket, cache):
    for _ in range(2):
        path = download.maybe_download("gs://bucket/tokenizer.model", gs={"token": "anon"})
        assert path == cache / "bucket" / "tokenizer.model"
        assert path.read_bytes() == OBJECTS["tokenizer.model"]
    assert len(bucket.requests) == 1
    path.write_bytes(b"spoilt")
    assert download.maybe_download("gs://bucket/tokenizer.model", force_download=True).read_bytes() == b"a tokenizer"


def test_files_that_differ_in_the_suffix_only_do_not_share_anything(bucket, cache):
    for name in ("tokenizer", "tokenizer.model"):
        assert download.maybe_download(f"gs://bucket/{name}").read_bytes() == OBJECTS[name]
    assert sorted(path.name for path in (cache / "bucket").iterdir()) == ["tokenizer", "tokenizer.model"]


def test_a_folder_of_a_bucket_is_fetched_whole_and_without_its_neighbors(bucket):
    path = download.maybe_download("gs://bucket/runs/7/params/")
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert files == {"_METADATA": b"{}", "d/0 1+": OBJECTS["runs/7/params/d/0 1+"]}
    assert sorted(child.name for child in path.parent.iterdir()) == ["params"]


def test_http_files_are_fetched_below_the_hosts_name(server, cache):
    host = f"127.0.0.1:{server.server_port}"
    assert download.maybe_download(f"http://{host}/bucket/tokenizer") == cache / host / "bucket" / "tokenizer"


@pytest.mark.parametrize("url", ["gs://bucket/nothing/here", "gs://bucket/runs/7/par"])
def test_a_missing_remote_file_is_named_and_leaves_nothing(bucket, cache, url):
    with pytest.raises(FileNotFoundError, match=f"{url}: no such file or folder"):
        download.maybe_download(url)
    assert [path.name for path in cache.iterdir()] == [".downloads"]


@pytest.mark.parametrize("name", ["mine", "listed"])
def test_a_bucket_that_is_not_public_is_read_by_gcsfs_or_its_absence_is_named(bucket, cache, monkeypatch, name):
    url = f"gs://closed/{name}"
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(errors.MissingFileError, match=rf"{url}: its bucket is not public\. Run 'pip install gcsfs'"):
        download.maybe_download(url)
    assert not (cache / "closed").exists()
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setattr(download, "_fetch_fsspec", lambda _url, part, options: part.write_text(f"{_url} {options}"))
    assert download.maybe_download(url).read_text() == f"{url} {{}}"


def test_a_connection_that_breaks_off_leaves_nothing_in_the_cache(bucket, cache):
    with pytest.raises(
        errors.UserError, match=r"broke off after 4 of 8 bytes\)\. 0\.0 MB have arrived.*put it at '.*/bucket/broken'"
    ):
        download.maybe_download("gs://bucket/broken")
    assert not (cache / "bucket").exists()


def test_a_connection_that_breaks_off_is_resumed_where_it_ended(bucket, monkeypatch, caplog):
    monkeypatch.setattr(http_file, "_PAUSE_S", 0)
    assert download.maybe_download("gs://bucket/shaky").read_bytes() == SHAKY
    assert len(bucket.requests) == 3
    assert "broke off after 400000 of 1000000 bytes, resuming after 400000 bytes" in caplog.text


def test_parts_of_different_versions_are_never_joined(bucket, monkeypatch):
    monkeypatch.setattr(http_file, "_PAUSE_S", 0)
    with pytest.raises(errors.UserError, match="broke off after 400000 of 1000000 bytes"):
        download.maybe_download("gs://bucket/changing")


def test_a_file_with_the_wrong_checksum_is_refused(bucket, cache):
    with pytest.raises(errors.UserError, match=r"found MD5 .* of 6 bytes, expected .*put it at"):
        download.maybe_download("gs://bucket/spoilt")
    assert not (cache / "bucket").exists()


def test_a_file_without_md5_is_compared_by_its_crc32c(bucket):
    assert download.maybe_download("gs://bucket/composite_whole").read_bytes() == b"123456789"
    with pytest.raises(errors.UserError, match=r"found CRC-32C 4waSgw== of 9 bytes, expected 4waSgA=="):
        download.maybe_download("gs://bucket/composite_spoilt")


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_has_the_values_of_its_specification(data, checksum):
    crc = Crc32c()
    crc.update(data)
    assert crc.digest() == checksum.to_bytes(4, "big")


def test_crc32c_is_that_of_the_bits_however_the_bytes_arrive(monkeypatch):
    monkeypatch.setattr(crc32c, "_BLOCK_BYTES", 1 << 12)

    def by_bits(data):
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        return (crc ^ 0xFFFFFFFF).to_bytes(4, "big")

    data = random.Random(0).randbytes(50_000)
    crc = Crc32c()
    for start in range(0, len(data), 7_777):
        crc.update(data[start : start + 7_777])
    assert crc.digest() == by_bits(data)


def partial_folder(cache):
    (folder,) = (cache / ".downloads").glob("*.partial")
    return folder


FETCH = "import sys; from openpi.shared import download; print(download.maybe_download(sys.argv[1]))"


@contextlib.contextmanager
def killed_while_it_fetches(url, bucket, started):
    """Kill a process with SIGKILL once `started()` is true. The server's handler waits meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", FETCH, url])
    deadline_s = time.monotonic() + 60
    while not started():
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.kill()
    process.wait()
    bucket.go_on.set()
    yield


def test_a_killed_download_resumes_where_it_ended(bucket, cache):
    def started():
        files = list((cache / ".downloads").glob("*.partial/content"))
        return files and files[0].stat().st_size == HALF

    bucket.go_on.clear()
    with killed_while_it_fetches("gs://bucket/stalling", bucket, started):
        assert not (cache / "bucket").exists()
        bucket.requests.clear()
        assert download.maybe_download("gs://bucket/stalling").read_bytes() == SHAKY
        assert bucket.requests == [f"/bucket/stalling from {HALF}"]
    assert not list((cache / ".downloads").glob("*.partial"))


def test_a_killed_download_of_a_folder_fetches_only_what_it_lacks(bucket, cache, monkeypatch):
    def broken(url, *args, **kwargs):
        if "/d/" in url:
            raise OSError("the power went off")
        fetch(url, *args, **kwargs)

    fetch = http_file.fetch
    monkeypatch.setattr(http_file, "fetch", broken)
    with pytest.raises(errors.UserError, match="power went off"):
        download.maybe_download("gs://bucket/runs/7/params")
    monkeypatch.setattr(http_file, "fetch", fetch)
    (partial_folder(cache) / "content/leftover").write_text("of an older version")
    bucket.requests.clear()
    path = download.maybe_download("gs://bucket/runs/7/params")
    assert sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()) == [
        "_METADATA",
        "d/0 1+",
    ]
    assert "/bucket/runs/7/params/_METADATA" not in bucket.requests


def test_half_a_file_of_another_version_is_not_resumed(bucket, cache):
    with pytest.raises(errors.UserError, match="broke off"):
        download.maybe_download("gs://bucket/broken")
    (note,) = (partial_folder(cache) / "notes").iterdir()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"etag": '"old"', "size": 100}))
    with pytest.raises(errors.UserError, match="broke off after 4 of 8 bytes"):
        download.maybe_download("gs://bucket/broken")
    note.write_text("not JSON")
    with pytest.raises(errors.UserError, match="broke off after 4 of 8 bytes"):
        download.maybe_download("gs://bucket/broken")


def test_a_failed_forced_download_keeps_the_old_version(bucket, cache):
    (cache / "bucket").mkdir(parents=True)
    (cache / "bucket" / "broken").write_text("old but whole")
    with pytest.raises(errors.UserError, match="download failed"):
        download.maybe_download("gs://bucket/broken", force_download=True)
    assert (cache / "bucket" / "broken").read_text() == "old but whole"


def test_without_a_server_the_message_names_the_place_in_the_cache(cache, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    with pytest.raises(errors.UserError, match=r"download failed .*put it at '.*/cache/bucket/a/b' \(OPENPI_DATA_HOME"):
        download.maybe_download("gs://bucket/a/b")


def test_offline_uses_the_cache_and_names_the_place_of_what_it_lacks(bucket, cache, monkeypatch):
    monkeypatch.setenv("OPENPI_OFFLINE", "1")
    with pytest.raises(errors.UserError, match=r"OPENPI_OFFLINE is set\. Put it at '.*/cache/bucket/tokenizer.model'"):
        download.maybe_download("gs://bucket/tokenizer.model")
    (cache / "bucket").mkdir()
    (cache / "bucket" / "tokenizer.model").write_text("put there by hand")
    assert download.maybe_download("gs://bucket/tokenizer.model").read_text() == "put there by hand"
    assert bucket.requests == []


@pytest.mark.parametrize("url", ["gs://bucket", "gs://../etc/passwd", "gs://bucket/../../x", "http:///path"])
def test_a_url_that_would_leave_the_cache_is_refused(cache, url):
    with pytest.raises(errors.UserError, match="not a URL of a remote file"):
        download.maybe_download(url)


def test_a_scheme_without_a_backend_says_which_package_is_missing(cache):
    with pytest.raises(errors.UserError, match="nosuchscheme"):
        download.maybe_download("nosuchscheme://host/file")


def test_checkpoints_published_again_since_they_were_cached_are_fetched_again(cache):
    path = cache / "openpi-assets" / "checkpoints" / "pi0_libero"
    path.mkdir(parents=True)
    for day, is_fresh in ((1738368000, False), (1740787200, True)):  # 1 February and 1 March 2025
        os.utime(path, (day, day))
        assert download._is_fresh(cache, path) is is_fresh


def test_the_cache_is_not_writable_by_others(bucket, cache):
    old_mask = os.umask(0o022)
    try:
        path = download.maybe_download("gs://bucket/runs/7/params")
    finally:
        os.umask(old_mask)
    assert all(p.stat().st_mode & 0o022 == 0 for p in (cache, path, *path.rglob("*")))


def _fetch(url, results):
    results.put(download.maybe_download(url).stat().st_size)


def test_processes_that_want_the_same_file_fetch_it_once(bucket, cache):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_fetch, args=("gs://bucket/tokenizer", results)) for _ in range(3)]
    for process in processes:
        process.start()
    sizes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sizes == [len(OBJECTS["tokenizer"])] * 3
    assert bucket.requests == ["/bucket/tokenizer"]


def test_the_default_cache_is_openpis(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENPI_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.get_cache_dir() == pathlib.Path(tmp_path) / ".cache" / "openpi"
