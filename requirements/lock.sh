#!/usr/bin/env bash
# lock.sh UV: renew every hash-pinned requirements file from pyproject.toml.
set -euo pipefail
uv=$1
cd "$(dirname "$0")/.."
options=(--quiet --upgrade --universal --generate-hashes --no-header)
# The client's distribution is in this tree: its own needs are locked, it is installed from the tree.
ours=(--no-emit-package openpi-client --no-emit-package realman-openpi)
compile() { "$uv" pip compile pyproject.toml "${options[@]}" "${ours[@]}" "$@"; }

compile --python-version 3.11 --extra train --extra sim --group dev -o requirements/dev.lock
for cuda in cuda12 cuda13; do
  compile --python-version 3.11 --extra train --extra sim --extra "$cuda" --group dev -o "requirements/$cuda.lock"
done
# The robot PC: Python 3.10 to 3.12, x86-64 and aarch64, wheels only.
compile --python-version 3.10 -o requirements/robot-pc.lock
compile --python-version 3.10 --extra sim --group robot-pc-test -o requirements/robot-pc-test.lock

for name in upstream published-client; do
  "$uv" pip compile "requirements/$name.in" "${options[@]}" --python-version 3.11 -o "requirements/$name.lock"
done
"$uv" pip compile "${options[@]}" --python-version 3.11 --group pyproject.toml:docs -o requirements/docs.lock
