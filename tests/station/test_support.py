"""`realman support` collects versions, settings and logs, and hides every secret."""

import os

import pytest

from realman.errors import SiteError
from realman.station import support


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Return the report of a folder whose files all hold secrets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REALMAN_API_KEY", "k3y-of-the-server")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "site.toml").write_text(
        'robot = "rm65"\napi_key = "secret-1"\n[server]\nhost = "http://joe:secret-2@10.0.0.7"\nPassword: secret-3\n'
    )
    for name, text in {
        "data/client/run.json": '{\n "ended_by": "the end key",\n "wandb_token": "secret-4",\n "steps": 12\n}\n',
        "checkpoints/pi0_realman/old/config.json": '{"old": 1}\n',
        "checkpoints/pi0_realman/run1/config.json": '{\n "batch_size": 32\n}\n',
        "checkpoints/pi0_realman/run1/train_log.jsonl": "".join(f'{{"step": {i}}}\n' for i in range(100)),
        "data/demo/server.log": "started with k3y-of-the-server and hf_abcdef\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    os.utime(tmp_path / "checkpoints/pi0_realman/old/config.json", (0, 0))
    assert support.main(support.Args(site=tmp_path / "site.toml")) == 0
    return (tmp_path / "support.txt").read_text()


def test_the_report_has_versions_settings_and_the_newest_logs(report):
    for expected in (
        "realman-openpi 0.",
        "numpy ",
        "JAX_PLATFORMS=cpu",
        "REALMAN_API_KEY is set",
        "WANDB_API_KEY is not set",
        'robot = "rm65"',
        '"ended_by": "the end key"',
        '"steps": 12',
        '"batch_size": 32',
        '{"step": 99}',
    ):
        assert expected in report, expected
    assert '{"old": 1}' not in report
    assert '{"step": 10}' not in report


def test_the_report_holds_no_secret(report):
    for secret in ("k3y-of-the-server", "hf_abcdef", "secret-1", "secret-2", "secret-3", "secret-4", "joe"):
        assert secret not in report, secret
    assert "api_key = [hidden]" in report
    assert "http://[hidden]@10.0.0.7" in report


def test_a_site_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(SiteError, match=r"nowhere\.toml: no such file\. Leave --site out"):
        support.main(support.Args(site=tmp_path / "nowhere.toml", out=tmp_path / "s.txt"))
    assert not (tmp_path / "s.txt").exists()


def test_an_empty_folder_gives_a_report_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert support.main(support.Args()) == 0
    assert (tmp_path / "support.txt").read_text().count("none found") == 5
