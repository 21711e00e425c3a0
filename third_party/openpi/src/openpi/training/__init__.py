"""Training: from a LeRobot dataset to checkpoints.

At the door are the modules that the original openpi has too: `config` (the registry), `data_loader`, `checkpoints`,
`optimizer`, `sharding`, `weight_loaders` and `misc/` (the configs of single robots). The rooms, in the order of the data:

    configs/   the settings of a run
    lerobot/   the dataset format, read frame by frame
    samples/   which sample comes next
    stats/     normalization statistics and their provenance
    step/      one training step
    memory/    what fits on the machine
    reports/   what a run writes for people
    host/      processes, disk, signals
    run/       a run from its first check to its last checkpoint
"""

import sys

if sys.version_info < (3, 11):
    raise ImportError(
        f"openpi.training: found Python {sys.version_info[0]}.{sys.version_info[1]}, expected 3.11 or 3.12. Install one"
    )
