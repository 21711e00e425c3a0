"""What a user's program may import: every name in `__all__` exists, is documented, and is loaded only when used."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

PACKAGES = ("realman", "realman.data", "realman.robots", "realman.runtime", "realman.evaluation", "realman.station")
HEAVY = ("jax", "torch", "lerobot", "mujoco", "pyarrow", "matplotlib", "cv2", "websockets", "h5py")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_has_a_docstring(package):
    module = importlib.import_module(package)
    assert module.__doc__
    assert module.__all__
    for name in module.__all__:
        value = getattr(module, name)
        assert not (inspect.isclass(value) or inspect.isfunction(value)) or inspect.getdoc(value), f"{package}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_of_contents_lists_what_it_imports(package, repo_root):
    stub = ast.parse((repo_root / package.replace(".", "/") / "__init__.pyi").read_text())
    imported = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    (listed,) = [ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign)]
    assert listed == sorted(imported)
    assert sorted(importlib.import_module(package).__all__) == listed


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_is_imported_without_heavy_packages(package):
    code = f"import sys, {package}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
