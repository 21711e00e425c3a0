#!/usr/bin/env bash
# install.sh VENV LOCK: install exactly what LOCK lists into VENV, with hashes checked, and this tree (editable).
# uv takes seconds. Without uv, pip installs the same file in about a minute.
set -euo pipefail
venv=$1 lock=$2

source "$(dirname "$0")/find_python.sh"

[ -f "$lock" ] || { echo "setup: $lock is missing; GPU must be empty, cuda12 or cuda13" >&2; exit 1; }
if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python 3.11 3.12)
  echo "setup: new environment $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv ||
  echo "setup: uv could not be installed; using pip"

tree=(--editable third_party/openpi/packages/openpi-client --editable .)
echo "setup: installing $lock"
if [ -x "$venv/bin/uv" ] && "$venv/bin/uv" pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock"; then
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation "${tree[@]}"
else
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "${tree[@]}"
fi
echo "setup: ready"
