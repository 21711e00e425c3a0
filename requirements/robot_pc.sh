#!/usr/bin/env bash
# robot_pc.sh [pytest arguments]: run the robot side's tests as a robot PC would, with Python 3.10 and its own packages.
# The tree's wheels are installed into .venv-robot-pc. `make setup` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."
source requirements/find_python.sh
make_environment .venv-robot-pc requirements/robot-pc-test.lock 3.10
bash requirements/wheels.sh build/wheels >/dev/null
.venv/bin/uv pip install --quiet --python .venv-robot-pc/bin/python --no-deps --reinstall build/wheels/*.whl

# Outside the tree, so that the installed wheels are tested and not the source folders.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r tests examples docs requirements pyproject.toml "$scratch/"
python=$PWD/.venv-robot-pc/bin/python
cd "$scratch"
tests=(tests/robots tests/runtime tests/station tests/test_kinematics.py
  # These compare with the framework or the dataset writer, which a robot PC does not have.
  --ignore tests/runtime/test_client.py --ignore tests/runtime/test_client_contract.py
  --ignore tests/runtime/test_recording.py
  --deselect tests/runtime/test_client_main.py::test_a_dataset_that_exists_is_not_recorded_over
  # These read the source tree.
  --deselect tests/runtime/test_client_main.py::test_the_client_needs_nothing_that_the_robot_pcs_lock_lacks
  --deselect tests/runtime/test_control.py::test_nothing_next_to_the_arms_reads_a_clock_that_can_be_set)
env -u PYTHONPATH "$python" -m pytest -q -p no:cacheprovider -n auto --maxprocesses 4 --max-worker-restart 0 \
  --dist loadfile -m "not slow and not hardware" "${@:-${tests[@]}}"
