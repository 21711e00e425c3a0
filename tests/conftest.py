"""Common to all tests: JAX on the CPU, no network, and the folder of golden files."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["OPENPI_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The top folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers and files made by the original openpi and LeRobot; see `tests/golden/README.md`."""
    return ROOT / "tests" / "golden"
