# find_python VERSION...: print the path of the first Python of one of these versions. Source this file.
# $PYTHON is tried first, then the search path, then what pyenv has installed.
find_python() {
  local version candidate
  for version in "$@"; do
    for candidate in "${PYTHON:-}" "python$version" python3 python \
      "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
      [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
      "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null || continue
      command -v "$candidate"
      return
    done
  done
  echo "found no Python $*. Install one, or name it: PYTHON=/path/to/python make ..." >&2
  return 1
}

# make_environment FOLDER LOCK VERSION...: a virtual environment that holds exactly what LOCK lists, hashes checked.
make_environment() {
  local venv=$1 lock=$2 python
  shift 2
  [ ! "$venv/.ready" -nt "$lock" ] || return 0
  python=$(find_python "$@")
  echo "installing $lock into $venv ($("$python" --version))" >&2
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  if [ -x .venv/bin/uv ]; then
    .venv/bin/uv pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
  fi
  touch "$venv/.ready"
}
