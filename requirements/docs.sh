#!/usr/bin/env bash
# docs.sh: build the documentation site into build/site, without network, and stop at the first broken link.
set -euo pipefail
cd "$(dirname "$0")/.."
source requirements/find_python.sh
make_environment .venv-docs requirements/docs.lock 3.11 3.12
python=.venv-docs/bin/python
$python requirements/stage_docs.py
NO_MKDOCS_2_WARNING=1 $python -m mkdocs build --strict --quiet --site-dir build/site "$@"
$python requirements/check_site.py build/site
