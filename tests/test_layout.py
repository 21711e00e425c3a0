"""The tree keeps its shape: who may import whom, how long a file may be, and documents that name what exists."""

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import subprocess
import sys

import pytest

from benchmarks import prose
from benchmarks import structure

ROOT = Path(__file__).resolve().parents[1]
OPENPI = ROOT / "third_party/openpi/src/openpi"
OPENPI_CLIENT = ROOT / "third_party/openpi/packages/openpi-client/src/openpi_client"
REALMAN = ROOT / "realman"
MAX_LINES = 500


def tracked_files(*suffixes: str) -> list[Path]:
    return [f for f in prose.tracked(ROOT) if f.suffix in suffixes]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (module, whether at the top level of the file) of each import."""
    tree = ast.parse(path.read_text())
    top_level = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top_level
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from realman import spec` names a module, not something inside one.
            modules = [f"realman.{alias.name}" for alias in node.names] if node.module == "realman" else [node.module]
            for module in modules:
                yield module, id(node) in top_level


def offenders(
    folder: Path, forbidden: str, *, allowed: tuple[str, ...] = (), inside_functions_ok: bool = False
) -> list[str]:
    found = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        for module, at_top in imports(path):
            if module.split(".")[0] == forbidden and name not in allowed and (at_top or not inside_functions_ok):
                found.append(f"{name} imports {module}")
    return found


def test_openpi_never_imports_realman():
    assert offenders(OPENPI, "realman") == []
    assert offenders(OPENPI_CLIENT, "realman") == []


def test_the_light_client_never_imports_openpi_or_jax():
    assert offenders(OPENPI_CLIENT, "openpi") == []
    assert offenders(OPENPI_CLIENT, "jax") == []


def test_realman_meets_openpi_only_at_its_two_doors():
    assert offenders(REALMAN, "openpi_client", allowed=("cli.py", "ranges.py", "runtime/client.py")) == []
    assert offenders(REALMAN, "openpi", allowed=("evaluation/open_loop.py",)) == []
    assert offenders(REALMAN, "openpi", inside_functions_ok=True) == []


@pytest.mark.parametrize("heavy", ["jax", "torch", "lerobot"])
def test_realman_loads_no_learning_framework_when_imported(heavy):
    assert offenders(REALMAN, heavy, inside_functions_ok=True) == []


def test_mujoco_stays_inside_the_simulator():
    found = [line for line in offenders(REALMAN, "mujoco") if not line.startswith("robots/sim/")]
    assert found == []


# Arrows point down: a room imports only those in front of it. Ground files know nothing of the rooms.
GROUND = ("errors", "ranges", "spec", "arrays", "pacing", "kinematics", "cli")
ROOMS = ("data", "robots", "runtime", "evaluation", "station", "demo")


def test_arrows_between_rooms_point_down():
    order = {name: level for level, name in enumerate((*GROUND, *ROOMS))}
    assert sorted(order) == sorted(entry.removesuffix(".py") for entry in structure.entries(REALMAN))
    arrows = structure.arrows(REALMAN, "realman")
    assert {f"{a} imports {b}" for a, b in arrows if order[a] < order[b]} == set()


# The same in training. `config` and `misc` are one floor: the registry lists a robot's configs, which derive from its classes.
TRAINING = (
    ("lerobot", "optimizer", "sharding", "weight_loaders"),
    ("configs",),
    ("host",),
    ("samples",),
    ("config", "misc"),
    ("stats",),
    ("data_loader",),
    ("step",),
    ("checkpoints", "memory", "reports"),
    ("run",),
)


def test_arrows_between_rooms_of_training_point_down():
    folder = OPENPI / "training"
    level = {name: floor for floor, names in enumerate(TRAINING) for name in names}
    assert sorted(level) == sorted(entry.removesuffix(".py") for entry in structure.entries(folder))
    arrows = structure.arrows(folder, "openpi.training")
    assert {f"{a} imports {b}" for a, b in arrows if level[a] < level[b]} == set()
    same_floor = {(a, b) for a, b in arrows if level[a] == level[b]}
    assert same_floor <= {("config", "misc"), ("misc", "config")}


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
@pytest.mark.parametrize("room", [REALMAN, OPENPI / "training"], ids=lambda room: room.name)
def test_the_tree_of_the_readme_has_every_entry(document, room):
    tree = max(re.findall(r"^```\w*\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL), key=len)
    missing = [e for e in structure.entries(room) if not re.search(rf"(?<![\w.]){re.escape(e)}(?![\w])", tree)]
    assert missing == []


def test_the_robots_numbers_load_without_heavy_packages():
    code = (
        "import sys, realman.spec, realman.errors\n"
        "print([m for m in ('jax', 'torch', 'lerobot', 'cv2', 'h5py', 'mujoco') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_the_linter_sees_every_file():
    # An exclusion of the folder `data` once hid realman/data and tests/data from it.
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    seen = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert {f.as_posix() for f in tracked_files(".py")} - set(seen) == set()


def test_no_file_is_longer_than_a_reader_can_bear():
    lengths = {f.relative_to(ROOT).as_posix(): len(f.read_text().splitlines()) for f in tracked_files(".py", ".sh")}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_no_module_is_called_utils_or_like_the_standard_library():
    names = [
        f.relative_to(ROOT).as_posix()
        for f in tracked_files(".py")
        if f.stem == "utils" or f.stem in sys.stdlib_module_names
    ]
    assert [n for n in names if "tests/" not in n] == []


DOCUMENTS = [f.relative_to(ROOT).as_posix() for f in tracked_files(".md") if "CHANGELOG" not in f.name]
TWINS = [("README.md", "README.zh-CN.md"), ("examples/realman/README.md", "examples/realman/README.zh-CN.md")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_by_a_document_exist(document):
    text = (ROOT / document).read_text()
    roots = (ROOT, OPENPI, OPENPI.parent, REALMAN, ROOT / "third_party/openpi", (ROOT / document).parent)
    paths = set(re.findall(r"`([\w./-]+/[\w./-]+\.(?:py|pyi|md|sh|toml|lock|css))`", text))
    # CONTRIBUTING says that `client/` is short for the light client's folder.
    places = {p: [root / p for root in roots] + [OPENPI_CLIENT / p.removeprefix("client/")] for p in paths}
    made = ("build/", "data/", "assets/", "checkpoints/", "~")
    missing = [p for p in sorted(paths) if not p.startswith(made) and not any(f.exists() for f in places[p])]
    assert missing == []


def test_the_documents_name_files():
    assert sum("/" in path for d in DOCUMENTS for path in re.findall(r"`([^`\n]+\.py)`", (ROOT / d).read_text())) > 100


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_named_by_a_document_exist(document):
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]+)", (ROOT / document).read_text(), flags=re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize(("english_name", "chinese_name"), TWINS)
def test_a_chinese_document_has_the_parts_and_the_targets_of_the_english_one(english_name, chinese_name):
    english, chinese = ((ROOT / name).read_text() for name in (english_name, chinese_name))
    for pattern in (r"^## ", r"^### ", r"^```", r"^\| ", r"^!\["):
        assert len(re.findall(pattern, chinese, re.MULTILINE)) == len(re.findall(pattern, english, re.MULTILINE)), (
            pattern
        )
    named = set(re.findall(r"make ([a-z][a-z0-9-]+)", english))
    assert {target for target in named if f"make {target}" not in chinese} - {"sure"} == set()
    assert set(re.findall(r"--[a-z][a-z-]+", chinese)) == set(re.findall(r"--[a-z][a-z-]+", english))


def test_bare_make_lists_every_target_and_a_missing_variable_stops_with_an_example():
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    listing = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert targets
    assert all(re.search(rf"^  {t}\s+\S", listing, flags=re.MULTILINE) for t in targets)
    convert = subprocess.run(["make", "convert", "DATA="], cwd=ROOT, capture_output=True, text=True, check=False)
    assert convert.returncode == 2
    assert "convert needs DATA: make convert DATA=/data/fold_towel" in convert.stderr
