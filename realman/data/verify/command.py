"""Verify a dataset with the official lerobot: `realman verify --data RECORDINGS`.

lerobot runs in its own environment and loads every item of the dataset. Each item is compared with the recordings,
which are read with the options of the conversion. The exit code is 1 if a feature differs.
"""

import dataclasses
import logging
import math
from pathlib import Path
import shlex
import sys
from typing import Annotated

from rich.console import Console
from rich.table import Table
from tqdm import tqdm
import tyro

from realman.data.convert import dataset_dir
from realman.data.dataset import layout
from realman.data.verify import compare
from realman.data.verify import environment
from realman.errors import DatasetError

logger = logging.getLogger(__name__)

_PIPE_WIDTH = 120


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the verification."""

    data: Annotated[Path, tyro.conf.arg(aliases=["--raw-dir"])]
    """Folder of the recordings from which the dataset was made."""
    repo_id: str = "realman/dual_arm"
    """Name of the dataset, which is its folder below the root."""
    root: Path | None = None
    """Folder of all datasets. None means $HF_LEROBOT_HOME, or data/lerobot if that is not set."""
    lerobot_python: Path | None = None
    """Python of an environment with lerobot. None means .venv-lerobot, which is installed on demand."""


def main(args: Args) -> int:
    """Compare lerobot's items with the recordings. Exit code 1 if they differ."""
    root = dataset_dir(args.root, args.repo_id)
    if not (root / layout.INFO).is_file():
        raise DatasetError(
            f"{root}: no LeRobot dataset. Make it with 'make convert DATA={shlex.quote(str(args.data))}'"
        )
    python = args.lerobot_python or environment.lerobot_python()
    with tqdm(desc="verify", unit=" items") as bar:

        def on_item(total: int) -> None:
            bar.total = total
            bar.update()

        verdict = compare.compare(compare.ConvertedDataset(root, args.data), python, on_item=on_item)
    # Feature names are long, and a pipe has no width.
    Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(_table(verdict, root))
    for key, agreement in verdict.features.items():
        if not agreement.is_good:
            logger.error("%s differs, first and most at %s", key, agreement.worst)
    sys.stdout.write(f"{'all features agree' if verdict.is_good else 'the dataset differs from its recordings'}\n")
    return 0 if verdict.is_good else 1


def _table(verdict: compare.Verdict, root: Path) -> Table:
    title = f"lerobot {verdict.lerobot_version}: {verdict.num_items} items of {root}"
    table = Table(title=title, title_justify="left")
    for heading in ("feature", "items", "identical", "largest difference", "PSNR dB", "agrees"):
        table.add_column(heading, justify="left" if heading == "feature" else "right", no_wrap=True)
    for key, agreement in verdict.features.items():
        psnr = "" if agreement.is_lossless or math.isinf(agreement.psnr_db) else f"{agreement.psnr_db:.1f}"
        cells = f"{agreement.num_items}", f"{agreement.num_equal}", f"{agreement.largest:g}", psnr
        table.add_row(key, *cells, "yes" if agreement.is_good else "no")
    return table
