#!/usr/bin/env bash
# compat.sh [pytest arguments]: run the framework's tests with the versions that the original openpi pins.
# They live in .venv-upstream, made here when it is missing or older than its lock. `make setup` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."
source requirements/find_python.sh
venv=.venv-upstream
make_environment "$venv" requirements/upstream.lock 3.11 3.12

# From the source folders instead of an installed package, whose lower bounds this environment is there to try.
roots=("$PWD" "$PWD/third_party/openpi/src" "$PWD/third_party/openpi/packages/openpi-client/src")
options=(
  -q -p no:cacheprovider
  # Without the check of realman's annotations: this jaxtyping installs it only after tests/conftest.py has been imported.
  -o "addopts=--strict-markers --import-mode=importlib -ra"
  -m "not slow and not checkpoint and not upstream and not gpu and not hardware"
)
PYTHONPATH=$(IFS=:; echo "${roots[*]}") JAX_PLATFORMS=cpu "$venv/bin/python" -m pytest "${options[@]}" "${@:-tests/framework}"
