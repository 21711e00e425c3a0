"""What several of the framework's tests begin with."""

import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi.models import gemma_config
from openpi.models import pi0_config
from openpi.shared import compile_cache

# Tiny models take far longer to compile than to run: a second run of the tests finds most programs on the disk.
if compile_cache.enable():
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(autouse=True)
def logging_ends_with_the_test():
    """A script that runs inside a test sets up logging; later tests would find its lines in stderr."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def home(tmp_path, monkeypatch, golden_dir) -> pathlib.Path:
    """A folder to work in, with the golden image dataset under the name that the configs use."""
    shutil.copytree(golden_dir / "lerobot_v21_image", tmp_path / "data/lerobot/realman/dual_arm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    return tmp_path


def _set_rate(root: pathlib.Path, fps: float) -> None:
    info = root / "meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": fps}))
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        at = table.schema.get_field_index("timestamp")
        times = pa.array(np.arange(len(table)) / fps, table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at), times), path)


@pytest.fixture
def set_rate():
    """A function that gives a dataset (its folder) another rate, timestamps included."""
    return _set_rate


@pytest.fixture(scope="session")
def tiny_model() -> pi0_config.Pi0Config:
    """The smallest pi0 that has all its parts."""
    size = gemma_config.Config(width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=2048)
    return pi0_config.Pi0Config(
        dtype="float32",
        vision_variant="mu/56",
        paligemma_variant=size,
        action_expert_variant=size,
        action_horizon=6,
        max_token_len=8,
    )
