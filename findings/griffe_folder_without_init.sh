#!/usr/bin/env bash
# griffelib 2.4.1 (the API reader of mkdocstrings): a folder without __init__.py inside a package is left out, in silence.
#
# Guess: it finds what Python imports. A folder without __init__.py is a namespace package, and griffe supports those:
#   at the top level the same folder is read.
# Seen: below a package that has an __init__.py the folder is missing from the tree, without an error or a warning. A
#   page that names one of its functions fails ("could not be found"), and a page of the whole package is simply
#   shorter. Packages laid out as openpi is (training/ and policies/ have no __init__.py) lose most of their API pages.
# Source: griffe's finder, https://mkdocstrings.github.io/griffe/ . Remedy: give each folder an __init__.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check griffelib==2.4.1

mkdir -p package/training top/training
echo '"""A package."""' > package/__init__.py
for place in package top; do
  printf '"""A module."""\n\n\ndef train() -> None:\n    """Train."""\n' > "$place/training/loop.py"
done

venv/bin/python - > seen.txt <<'PYTHON'
import importlib.metadata
import sys

import griffe

sys.path.insert(0, ".")
print("griffelib", importlib.metadata.version("griffelib"))
for place in ("package", "top"):
    __import__(f"{place}.training.loop")
    print(f"{place}: Python imports {place}.training.loop, griffe finds {sorted(griffe.load(place, search_paths=['.']).members)}")
PYTHON
cat seen.txt

diff seen.txt - <<'EXPECTED'
griffelib 2.4.1
package: Python imports package.training.loop, griffe finds []
top: Python imports top.training.loop, griffe finds ['training']
EXPECTED
echo "as recorded"
