#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: one score that is NaN deletes the best checkpoint, and the worst one is called the best.
#
# Guess: with best_fn and best_mode="min", a checkpoint whose score is NaN ranks last, or saving it is an error. The
#   checkpoint with the lowest score stays.
# Seen: of the scores 1.0, 0.5, nan, 0.7 the checkpoint with 0.5 is deleted, and best_step() names 3 (0.7). Without the
#   NaN the same manager keeps 0.5. A NaN compares as neither smaller nor larger, so the order of all scores is lost.
#   Nothing is raised or logged. A validation that is not finite happens to every training that diverges for a moment.
# Source: orbax.checkpoint.CheckpointManager, https://orbax.readthedocs.io/ . Remedy: give best_fn a finite number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu venv/bin/python - > seen.txt 2> log.txt <<'PYTHON'
import importlib.metadata
import pathlib

import numpy as np
import orbax.checkpoint as ocp

print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"))
for name, scores in {"finite": (1.0, 0.5, 0.9, 0.7), "one NaN": (1.0, 0.5, float("nan"), 0.7)}.items():
    options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="min")
    with ocp.CheckpointManager(pathlib.Path.cwd() / name.replace(" ", "_"), options=options) as manager:
        for step, score in enumerate(scores):
            manager.save(step, args=ocp.args.StandardSave({"w": np.ones(2)}), metrics={"loss": score})
            manager.wait_until_finished()
        kept = [scores[step] for step in manager.all_steps()]
        print(f"{name}: scores {list(scores)}, kept {kept}, best_step() has {scores[manager.best_step()]}")
PYTHON
cat seen.txt

diff seen.txt - <<'EXPECTED'
orbax-checkpoint 0.12.8
finite: scores [1.0, 0.5, 0.9, 0.7], kept [0.5, 0.7], best_step() has 0.5
one NaN: scores [1.0, 0.5, nan, 0.7], kept [nan, 0.7], best_step() has 0.7
EXPECTED
echo "as recorded"
