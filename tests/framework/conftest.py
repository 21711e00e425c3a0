"""What several of the framework's tests begin with."""

import pathlib
import shutil

import pytest


@pytest.fixture
def home(tmp_path, monkeypatch, golden_dir) -> pathlib.Path:
    """A folder to work in, with the golden image dataset under the name that the configs use."""
    shutil.copytree(golden_dir / "lerobot_v21_image", tmp_path / "data/lerobot/realman/dual_arm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    return tmp_path
