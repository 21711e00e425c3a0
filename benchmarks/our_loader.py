"""Print the samples/s of our data loader on a dataset.

    python our_loader.py REPO_ID NUM_BATCHES WAY

`bench_train.py` runs this in a process of its own. WAY is one of

- `decoded`: images are decoded and not kept.
- `reduced`: the same, but JPEGs are decoded at a reduced size.
- `keeping`: the first pass over a dataset without kept images, which decodes and writes them. At most one pass.
- `kept`: a later pass. Missing images are made first.
"""

import dataclasses
import os
import shutil
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from openpi.training import config as _config
from openpi.training import data_loader
from openpi.training.lerobot import encoded_images
from openpi.training.lerobot import metadata as lerobot_metadata

BATCH_SIZE = 16
NUM_THREADS = 2
# The first batches are not counted, because more are read ahead while waiting for them.
NUM_WARM = 4


def main(repo_id: str, num_batches: int, way: str) -> None:
    """Read batches as training does."""
    kept = lerobot_metadata.default_root() / repo_id / encoded_images.UNPACKED
    if way == "keeping" and kept.exists():
        shutil.rmtree(kept)
    config = _config.get_config("debug_realman")
    data = dataclasses.replace(
        config.data, repo_id=repo_id, reduced_jpeg=way == "reduced", keep_images=way in ("keeping", "kept")
    )
    config = dataclasses.replace(config, data=data, batch_size=BATCH_SIZE, num_workers=NUM_THREADS)
    loader = data_loader.create_data_loader(config, shuffle=True, skip_norm_stats=True)
    in_a_pass = loader.num_samples // BATCH_SIZE
    batches = iter(loader)
    for _ in range(NUM_WARM + (in_a_pass if way == "kept" else 0)):
        next(batches)
    if way == "keeping":
        num_batches = min(num_batches, in_a_pass - NUM_WARM)
    started = time.perf_counter()
    for _ in range(num_batches):
        jax.block_until_ready(next(batches))
    sys.stdout.write(f"{num_batches * BATCH_SIZE / (time.perf_counter() - started)}\n")
    sys.stdout.flush()
    # Do not wait for the threads that read ahead.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
