"""`realman support` collects versions, settings and logs, hides secrets, and survives a sick machine."""

import json
import os
import stat
import time

import pytest

from realman.errors import SiteError
from realman.station import redaction
from realman.station import support


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a site, a run, a server's log and two training runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REALMAN_API_KEY", "k3y-of-the-server")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/?token=S01")
    config = {"batch_size": 32, "model": {"max_token_len": 48}, "data": {"action_sequence_keys": ["action"]}}
    files = {
        "site.toml": 'robot = "rm65" # password: S02\n[server]\nhost = "h"\nlogin = { user = "joe", password = "S03" }\n'
        '[cameras.a]\ndevice = "rtsp://10.0.0.4/user=admin&password=S04&channel=1"\n'
        '[cameras.b]\ndevice = "rtsp://admin:S05p/w@10.0.0.5/stream"\n[extra]\napi_keys = [\n "S06",\n "S07",\n]\n'
        'note = """\nAuthorization: Bearer S08\n"""\n"my key" = "S09"\n',
        "data/client/run.json": '{"ended_by": "the end key", "server": {"api_key": "S10"}, "steps": 12}',
        "data/demo/server.log": "started with k3y-of-the-server and hf_abcdef\nI 10:00 Authorization: Api-Key S11\n"
        "run --api-key S12 --port 8000\nexport AWS_SECRET_ACCESS_KEY=S13\nGET /x?access_token=S14 from 10.0.0.9\n",
        "checkpoints/pi0_realman/old/config.json": '{"old": 1}',
        "checkpoints/pi0_realman/run1/config.json": json.dumps(config),
        "checkpoints/pi0_realman/run1/train_log.jsonl": "".join(
            json.dumps({"step": i, "wandb_token": "S15"}) + "\n" for i in range(100)
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    os.utime(tmp_path / "checkpoints/pi0_realman/old/config.json", (0, 0))
    return tmp_path


@pytest.fixture
def report(home):
    assert support.main(support.Args(site=home / "site.toml")) == 0
    return (home / "support.txt").read_text()


def test_the_report_has_versions_settings_and_the_newest_logs(report):
    for expected in (
        "realman-openpi 0.",
        "numpy ",
        "JAX_PLATFORMS=cpu",
        "HF_ENDPOINT=https://mirror.example/[hidden]",
        "REALMAN_API_KEY is set",
        "WANDB_API_KEY is not set",
        "robot = 'rm65'",
        "ended_by = 'the end key'",
        "steps = 12",
        "batch_size = 32",
        "model.max_token_len = 48",
        "data.action_sequence_keys = ['action']",
        "step = 99",
        "cameras.a.device = 'rtsp://10.0.0.4/[hidden]",
        "cameras.b.device = 'rtsp://[hidden]@10.0.0.5/[hidden]",
    ):
        assert expected in report, expected
    assert "old = 1" not in report
    assert "step = 10," not in report


def test_the_report_holds_no_secret(report):
    secrets = [f"S{i:02}" for i in range(1, 16)]
    assert [s for s in (*secrets, "k3y-of-the-server", "hf_abcdef") if s in report] == []


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("api_key", True),
        ("apiKey", True),
        ("X-Api-Key", True),
        ("api_keys", True),
        ("PASSWORD", True),
        ("db_passwd", True),
        ("wandb_token", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("authorization", True),
        ("max_token_len", False),
        ("action_sequence_keys", False),
        ("keyboard", False),
        ("tokenizer", False),
        ("steps", False),
    ],
)
def test_a_name_is_judged_by_its_last_word(name, is_secret):
    assert redaction.is_secret_name(name) == is_secret


@pytest.mark.parametrize(
    "line",
    ["loss 0.12 at step 300", "found 3 keys in the file", "rtsp://10.0.0.4/stream", "the key 'e' begins an episode"],
)
def test_a_harmless_line_stays_as_it_is(line):
    assert redaction.line(line) == line


@pytest.mark.parametrize("text", ["token-" * 20_000, "key" * 50_000, "-" * 100_000, " " * 100_000, "a://" * 30_000])
def test_hiding_takes_no_longer_for_a_hostile_line(text):
    began = time.process_time()
    assert len(redaction.line(text)) < 2 * redaction.MAX_LINE
    assert time.process_time() - began < 2


def test_what_cannot_be_parsed_is_not_shown(home):
    (home / "site.toml").write_text("port = 80 ; token = S99\n")
    assert support.main(support.Args(site=home / "site.toml")) == 0
    report = (home / "support.txt").read_text()
    assert "could not be parsed (TOMLDecodeError)" in report
    assert "S99" not in report


def test_an_unreadable_log_and_a_hanging_program_leave_the_rest_of_the_report(home, monkeypatch):
    (home / "data/client/run.json").unlink()
    (home / "data/client/run.json").symlink_to("/proc/self/mem")
    (home / "bin").mkdir()
    program = home / "bin/nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(support, "_PROGRAM_TIMEOUT_S", 0.2)
    assert support.main(support.Args(site=home / "site.toml")) == 0
    report = (home / "support.txt").read_text()
    assert "nvidia-smi: TimeoutExpired" in report
    assert "could not be read (" in report
    assert "batch_size = 32" in report


def test_only_an_earlier_report_is_replaced(home):
    site = (home / "site.toml").read_text()
    with pytest.raises(SiteError, match=r"site\.toml: already exists and is not a report\. Choose another file"):
        support.main(support.Args(site=home / "site.toml", out=home / "site.toml"))
    assert (home / "site.toml").read_text() == site
    for _ in range(2):
        assert support.main(support.Args()) == 0


@pytest.mark.parametrize("out", [".", "site.toml/below.txt", "/dev/full"])
def test_a_report_that_cannot_be_written_is_one_line(home, out):
    with pytest.raises(SiteError, match=r"cannot be written \(.+\)\. Choose another file with --out"):
        support.main(support.Args(out=home / out))


@pytest.mark.parametrize("site", ["nowhere.toml", "."])
def test_a_site_that_is_no_file_is_refused(tmp_path, site):
    with pytest.raises(SiteError, match=r"not a file\. Leave --site out"):
        support.main(support.Args(site=tmp_path / site, out=tmp_path / "s.txt"))
    assert not (tmp_path / "s.txt").exists()


def test_an_empty_folder_gives_a_report_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert support.main(support.Args()) == 0
    assert (tmp_path / "support.txt").read_text().count("none found") == 5
