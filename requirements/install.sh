#!/usr/bin/env bash
# install.sh VENV LOCK: install exactly what LOCK lists into VENV, with hashes checked, and this tree (editable).
# uv takes seconds. Without uv, pip installs the same file in about a minute.
set -euo pipefail
venv=$1 lock=$2

find_python() {
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo "$candidate" && return
  done
  echo "setup: no Python 3.11 or 3.12 found; install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
  return 1
}

[ -f "$lock" ] || { echo "setup: $lock is missing; GPU must be empty, cuda12 or cuda13" >&2; exit 1; }
if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  echo "setup: new environment $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv ||
  echo "setup: uv could not be installed; using pip"

echo "setup: installing $lock"
if [ -x "$venv/bin/uv" ] && "$venv/bin/uv" pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock"; then
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable third_party/openpi/packages/openpi-client --editable .
else
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable third_party/openpi/packages/openpi-client --editable .
fi
echo "setup: ready"
