#!/usr/bin/env bash
# wheels.sh [FOLDER]: build both wheels into FOLDER (build/wheels). With no FOLDER, also use them in an empty environment.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/wheels}
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out"/*.whl
python=$PWD/.venv/bin/python
for project in third_party/openpi/packages/openpi-client .; do
  (cd "$project" && "$python" -m hatchling build -t wheel -d "$out" >/dev/null)
done
ls "$out"/*.whl
[ $# -eq 0 ] || exit 0

# An empty environment, outside the tree so that nothing is imported from it.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
uv=.venv/bin/uv
"$uv" pip install --quiet --python "$scratch/venv/bin/python" --require-hashes -r requirements/robot-pc.lock
"$uv" pip install --quiet --python "$scratch/venv/bin/python" --no-deps "$out"/*.whl
cp requirements/check_install.py "$scratch/"
(cd "$scratch" && env -u PYTHONPATH venv/bin/python check_install.py)

# The robot PC's lock has a wheel for every package on 64-bit Arm, and for each Python that it may have.
for version in 3.10 3.11 3.12; do
  "$uv" pip install --quiet --dry-run --target "$scratch/arm-$version" --python-version "$version" --no-deps \
    --python-platform aarch64-manylinux_2_28 --only-binary :all: --require-hashes -r requirements/robot-pc.lock
  echo "wheels: robot-pc.lock has a wheel of every package for Python $version on aarch64"
done
