"""What several of the framework's tests begin with."""

import pathlib
import shutil

import jax
import pytest

from openpi.shared import compile_cache

# Tiny models take far longer to compile than to run: a second run of the tests finds most programs on the disk.
if compile_cache.enable():
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def home(tmp_path, monkeypatch, golden_dir) -> pathlib.Path:
    """A folder to work in, with the golden image dataset under the name that the configs use."""
    shutil.copytree(golden_dir / "lerobot_v21_image", tmp_path / "data/lerobot/realman/dual_arm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    return tmp_path
