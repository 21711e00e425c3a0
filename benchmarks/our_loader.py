"""Prints the samples/s of our data loader on a dataset; a process of its own, for `bench_train.py`.

python our_loader.py REPO_ID NUM_BATCHES REDUCED_JPEG(0|1)
"""

import dataclasses
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from openpi.training import config as _config
from openpi.training import data_loader

BATCH_SIZE = 16
NUM_THREADS = 2


def main(repo_id: str, num_batches: int, *, reduced_jpeg: bool) -> None:
    """Read batches as training does."""
    config = _config.get_config("debug_realman")
    data = dataclasses.replace(config.data, repo_id=repo_id, reduced_jpeg=reduced_jpeg)
    config = dataclasses.replace(config, data=data, batch_size=BATCH_SIZE, num_workers=NUM_THREADS)
    batches = iter(data_loader.create_data_loader(config, shuffle=True, skip_norm_stats=True))
    # What was read ahead while the first batches were waited for is not counted.
    for _ in range(4):
        next(batches)
    started = time.perf_counter()
    for _ in range(num_batches):
        jax.block_until_ready(next(batches))
    sys.stdout.write(f"{num_batches * BATCH_SIZE / (time.perf_counter() - started)}\n")
    sys.stdout.flush()
    # Threads that read ahead need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), reduced_jpeg=bool(int(sys.argv[3])))
