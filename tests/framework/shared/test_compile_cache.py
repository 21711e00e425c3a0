import jax
import pytest

from openpi.shared import compile_cache


@pytest.fixture(autouse=True)
def setting():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("version", "backend", "is_safe"),
    [("0.5.3", "cpu", False), ("0.5.3", "gpu", True), ("0.6.0", "cpu", True), ("0.10.2", "cpu", True)],
)
def test_programs_are_kept_unless_reading_them_back_would_crash(monkeypatch, tmp_path, version, backend, is_safe):
    jax.config.update("jax_compilation_cache_dir", "before")
    monkeypatch.setattr(jax, "__version__", version)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert compile_cache.enable(tmp_path) is is_safe
    assert jax.config.jax_compilation_cache_dir == (str(tmp_path) if is_safe else "before")


@pytest.mark.parametrize("place", ["/proc/cache", "~no-such-user/cache"])
def test_a_cache_that_cannot_be_written_is_said_and_left_out(monkeypatch, caplog, place):
    jax.config.update("jax_compilation_cache_dir", "before")
    monkeypatch.setattr(jax, "__version__", "0.6.0")
    assert not compile_cache.enable(place)
    assert jax.config.jax_compilation_cache_dir == "before"
    assert f"{place}: cannot be written (" in caplog.text
    assert "so every start compiles again" in caplog.text
