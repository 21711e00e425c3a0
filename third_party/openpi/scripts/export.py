"""Pack a checkpoint into one folder for serving.

The folder holds the weights for inference, the statistics and the tokenizer, and serving it needs no network.

Run: python third_party/openpi/scripts/export.py --config-name pi0_realman --checkpoint-dir checkpoints/pi0_realman/run1
"""

import dataclasses
import logging
import pathlib
import shlex
from typing import Literal

from openpi.policies import bundle_writer
from openpi.policies import checkpoint_folder
from openpi.shared import cli
from openpi.training import config as _config

logger = logging.getLogger(__name__)

EXPORTS_DIR = pathlib.Path("exports")


@dataclasses.dataclass(frozen=True)
class Args:
    """Pack a checkpoint for serving: weights, statistics and tokenizer in one folder."""

    # Config that the checkpoint was trained with.
    config_name: str
    # Folder of one step, or of a run to take its newest step.
    checkpoint_dir: str
    # Folder to create. None takes exports/<config>/<run>-<step>.
    out: pathlib.Path | None = None
    # Type of the weights. None takes the type that the model computes in, which is bfloat16 for all but debug models.
    dtype: Literal["bfloat16", "float32"] | None = None
    # Replace the folder if it exists.
    overwrite: bool = False


def main(args: Args) -> None:
    """Pack a checkpoint for serving: weights, statistics and tokenizer in one folder."""
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax reports each file
    config = _config.get_config(args.config_name)
    step_dir = checkpoint_folder.resolve(args.checkpoint_dir)
    out = args.out or EXPORTS_DIR / config.name / f"{step_dir.parent.name}-{step_dir.name}"
    made = bundle_writer.export(config, step_dir, out, dtype=args.dtype, overwrite=args.overwrite)
    weights, files = made.manifest["weights"], made.manifest["files"]
    size_mb = sum(file["bytes"] for file in files.values()) / 2**20
    logger.info(
        "%d files, %.1f MB: %.1f million weights in %s. Serve it with: make serve CKPT=%s",
        len(files),
        size_mb,
        weights["count"] / 1e6,
        weights["dtype"],
        shlex.quote(str(out)),
    )
    print(made.folder)  # noqa: T201 - the result


if __name__ == "__main__":
    cli.run(main, Args)
