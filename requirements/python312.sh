#!/usr/bin/env bash
# python312.sh [pytest arguments]: run the quick tests with Python 3.12, in .venv-312. `make setup` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."
source requirements/find_python.sh
make_environment .venv-312 requirements/dev.lock 3.12

# From the source folders: this environment has no installed copy of the tree that could differ from it.
roots=("$PWD" "$PWD/third_party/openpi/src" "$PWD/third_party/openpi/packages/openpi-client/src")
# What differs between Pythons is seen here. Compiled models are left to 3.11, because compiling takes minutes.
quick=(tests/test_*.py tests/data tests/evaluation tests/station tests/runtime
  tests/framework/test_transforms.py tests/framework/shared tests/framework/client tests/framework/models/test_models_golden.py)
PYTHONPATH=$(IFS=:; echo "${roots[*]}") JAX_PLATFORMS=cpu .venv-312/bin/python -m pytest -q -p no:cacheprovider -n auto --maxprocesses 4 \
  --max-worker-restart 0 --dist loadfile -m "not slow and not checkpoint and not upstream and not gpu and not hardware" \
  "${@:-${quick[@]}}"
