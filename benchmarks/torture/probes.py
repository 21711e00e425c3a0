"""Commands that print what something says, as JSON.

The attacks run them in processes of their own.

python -m benchmarks.torture.probes WHAT PATH
"""

import dataclasses
import hashlib
import json
from pathlib import Path
import sys
from typing import Any

from openpi.shared import cli
from openpi.shared.errors import UserError
from realman.errors import RealmanError


def statistics(folder: Path) -> Any:
    """Read normalization statistics as serving does."""
    from openpi.shared import normalize

    found = normalize.load(folder)
    # It warns about statistics that do not match their digest, as training and serving do.
    normalize.load_provenance(folder)
    return {key: {name: v.tolist() for name, v in vars(s).items() if v is not None} for key, s in found.items()}


def site(path: Path) -> Any:
    """Read a site's settings."""
    from realman.station import site_config

    return dataclasses.asdict(site_config.load_site(path))


def checkpoint(step_dir: Path) -> Any:
    """Read a checkpoint's parameters as serving does."""
    import jax
    import numpy as np

    from openpi.models import model
    from openpi.policies import checkpoint_folder

    params = model.restore_params(checkpoint_folder.resolve(step_dir) / "params", restore_type=np.ndarray)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(repr(leaf.shape).encode() + leaf.tobytes()).hexdigest()
        for path, leaf in leaves
    }


def main(what: str, path: Path) -> None:
    """Print one thing."""
    from benchmarks.torture import content

    readers = {
        "recordings": content.recordings,
        "dataset": content.dataset,
        "loaded": content.loaded,
        "statistics": statistics,
        "site": site,
        "checkpoint": checkpoint,
    }
    try:
        found = readers[what](path)
    except RealmanError as e:
        # The framework's own runner prints only its own errors in one line.
        raise UserError(str(e)) from e
    print(json.dumps(found))


if __name__ == "__main__":
    cli.run(lambda argv: main(argv[0], Path(argv[1])), lambda: sys.argv[1:])
