"""A stub of the original openpi as a git checkout: the names that the patched files use, and a registry like its own."""

from collections.abc import Callable
import dataclasses
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]

_DATACLASS = "import dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\n"

_REGISTRY_TOP = '''"""The registry."""
import dataclasses
import pathlib
from typing import Any

import openpi.models.pi0_config as pi0_config
import openpi.training.misc.other_config as other_config
import openpi.training.weight_loaders as weight_loaders
import openpi.transforms as _transforms


@dataclasses.dataclass(frozen=True)
class AssetsConfig:
    assets_dir: str | None = None
    asset_id: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    repo_id: str | None = None
    repack_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    data_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    model_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    action_sequence_keys: tuple[str, ...] = ("actions",)
    prompt_from_task: bool = False


@dataclasses.dataclass(frozen=True)
class ModelTransformFactory:
    default_prompt: str | None = None

    def __call__(self, model_config):
        return _transforms.Group(inputs=[_transforms.InjectDefaultPrompt(self.default_prompt)])


@dataclasses.dataclass(frozen=True)
class DataConfigFactory:
    repo_id: str = "missing"
    assets: AssetsConfig = dataclasses.field(default_factory=AssetsConfig)
    base_config: DataConfig | None = None

    def create_base_config(self, assets_dirs, model_config):
        return DataConfig(repo_id=self.repo_id)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    name: str
    model: Any = None
    weight_loader: Any = None
    lr_schedule: Any = None
    ema_decay: float | None = 0.99
    freeze_filter: Any = None
    data: DataConfigFactory = dataclasses.field(default_factory=DataConfigFactory)
    batch_size: int = 32
    num_train_steps: int = 30_000
    policy_metadata: dict[str, Any] | None = None

'''

_REGISTRY_BOTTOM = """
_CONFIGS = [
    TrainConfig(name="debug"),
    #
    # The configs of others.
    #
    *other_config.get_configs(),
]

if len({config.name for config in _CONFIGS}) != len(_CONFIGS):
    raise ValueError("names must differ")
_CONFIGS_DICT = {config.name: config for config in _CONFIGS}


def get_config(config_name: str) -> TrainConfig:
    return _CONFIGS_DICT[config_name]
"""

STUB_FILES = {
    "README.md": "A stub.\n",
    "src/openpi/__init__.py": "",
    "src/openpi/models/__init__.py": "",
    "src/openpi/models/model.py": """import enum


class ModelType(enum.Enum):
    PI0 = "pi0"
    PI0_FAST = "pi0_fast"
    PI05 = "pi05"


class BaseModelConfig:
    pass
""",
    "src/openpi/models/pi0_config.py": "from openpi.models import model as _model\n"
    + _DATACLASS
    + """class Pi0Config(_model.BaseModelConfig):
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int = None
    dtype: str = "bfloat16"
    paligemma_variant: str = "gemma_2b"
    action_expert_variant: str = "gemma_300m"
    pi05: bool = False
    discrete_state_input: bool = None

    @property
    def model_type(self):
        return _model.ModelType.PI05 if self.pi05 else _model.ModelType.PI0

    def get_freeze_filter(self):
        return self.paligemma_variant
""",
    "src/openpi/models/pi0_fast.py": "from openpi.models import model as _model\n"
    + _DATACLASS
    + """class Pi0FASTConfig(_model.BaseModelConfig):
    dtype: str = "bfloat16"
    paligemma_variant: str = "gemma_2b"
    action_dim: int = 32
    action_horizon: int = 32
    max_token_len: int = 250

    @property
    def model_type(self):
        return _model.ModelType.PI0_FAST

    def get_freeze_filter(self):
        return self.paligemma_variant
""",
    "src/openpi/policies/other_policy.py": "",
    "src/openpi/training/misc/other_config.py": """def get_configs():
    from openpi.training.config import TrainConfig

    return [TrainConfig(name="other")]
""",
    "src/openpi/training/optimizer.py": _DATACLASS + "class CosineDecaySchedule:\n    warmup_steps: int = 1000\n",
    "src/openpi/training/weight_loaders.py": _DATACLASS + "class CheckpointWeightLoader:\n    params_path: str\n",
    "src/openpi/transforms.py": """import dataclasses
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class DataTransformFn(Protocol):
    def __call__(self, data): ...


@dataclasses.dataclass(frozen=True)
class Group:
    inputs: Any = ()
    outputs: Any = ()

    def push(self, *, inputs=(), outputs=()):
        return Group(inputs=(*self.inputs, *inputs), outputs=(*outputs, *self.outputs))


@dataclasses.dataclass(frozen=True)
class RepackTransform(DataTransformFn):
    structure: Any


@dataclasses.dataclass(frozen=True)
class InjectDefaultPrompt(DataTransformFn):
    prompt: str | None


@dataclasses.dataclass(frozen=True)
class DeltaActions(DataTransformFn):
    mask: Any


@dataclasses.dataclass(frozen=True)
class AbsoluteActions(DataTransformFn):
    mask: Any


def make_bool_mask(*dims):
    return tuple(value for dim in dims for value in [dim > 0] * abs(dim))
""",
}


@dataclasses.dataclass(frozen=True)
class StubCheckout:
    """A folder with the stub's files."""

    root: Path

    def git(self, *arguments: str) -> str:
        """Run git in it as somebody, without this machine's settings."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=environment, check=True, capture_output=True, text=True
        ).stdout

    def contents(self) -> dict[str, bytes]:
        """Every file but git's own."""
        files = [path for path in self.root.rglob("*") if path.is_file() and ".git" not in path.parts]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}

    def read(self, name: str) -> str:
        return (self.root / name).read_text()


def _write_stub(root: Path, num_lines_before: int = 0) -> StubCheckout:
    registry = _REGISTRY_TOP + "".join(f"# {i}\n" for i in range(num_lines_before)) + _REGISTRY_BOTTOM
    for name, text in {**STUB_FILES, "src/openpi/training/config.py": registry}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return StubCheckout(root)


@pytest.fixture
def write_stub() -> Callable[..., StubCheckout]:
    """Write the stub below a folder, in no repository; its registry's list begins `num_lines_before` lines further down."""
    return _write_stub


@pytest.fixture
def commit() -> Callable[[StubCheckout], StubCheckout]:
    """Make a folder a clean repository."""

    def commit_all(stub: StubCheckout) -> StubCheckout:
        stub.git("init", "-q")
        stub.git("add", "-A")
        stub.git("commit", "-q", "-m", "start")
        return stub

    return commit_all


@pytest.fixture
def stub(tmp_path: Path, write_stub, commit) -> StubCheckout:
    """A clean checkout, a repository of its own."""
    return commit(write_stub(tmp_path / "openpi"))


@pytest.fixture
def tool() -> Callable[..., subprocess.CompletedProcess]:
    """Run the patch tool of this project, or of the copy of it at `project`."""

    def run(*arguments: object, project: Path = ROOT, **options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, project / "patches" / "tool.py", *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)

    return run
