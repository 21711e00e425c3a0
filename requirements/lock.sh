#!/usr/bin/env bash
# lock.sh UV: renew every hash-pinned requirements file from pyproject.toml.
set -euo pipefail
uv=$1
cd "$(dirname "$0")/.."
compile() { "$uv" pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header "$@"; }

compile --extra sim --group dev -o requirements/dev.lock
for cuda in cuda12 cuda13; do compile --extra sim --extra "$cuda" --group dev -o "requirements/$cuda.lock"; done
"$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
  --group pyproject.toml:robot-pc -o requirements/robot-pc.lock

"$uv" pip compile requirements/upstream.in --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
  -o requirements/upstream.lock
"$uv" pip compile requirements/published-client.in --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
  -o requirements/published-client.lock
