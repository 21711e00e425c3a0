"""Compare the provenance of a checkpoint's statistics with a config.

No dataset is needed: the provenance holds what the transforms made of a frame of known numbers.
"""

from collections.abc import Mapping, Sequence
import itertools
import pathlib
from typing import Any

import numpy as np

from openpi import transforms as _transforms
from openpi.shared import errors
from openpi.shared.normalize import Provenance
from openpi.training.configs.data_config import DataConfig
from openpi.training.stats import provenance as stats_provenance
from openpi.transforms import tree

# The probe's numbers depend on the places of the used columns among all columns of the dataset, which are not recorded.
_MAX_COLUMNS = 8
_MAX_USED = 3
_REPACK = _transforms.RepackTransform.__name__


def fps_of(provenance: Provenance | None) -> float | None:
    """Return the rate of the data in Hz, or None if unknown."""
    rates = {facts.get("fps") for facts in (provenance or {}).get("datasets", ())}
    rate = rates.pop() if len(rates) == 1 else None
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    return rate if is_number and 0 < rate < np.inf else None


def of_transforms(provenance: Provenance, data_config: DataConfig) -> str | None:
    """Return how a config's transforms differ from those of the statistics.

    Names alone do not count: two chains are the same if they make the same numbers. None means that nothing differs, or that the
    provenance does not show it.
    """
    chain = [*data_config.repack_transforms.inputs, *data_config.data_transforms.inputs]
    ours, theirs = [repr(transform) for transform in chain], provenance["transforms"]
    columns = provenance["datasets"][0]["columns"]
    if ours == theirs or len(columns) > _MAX_USED:
        return None
    if any(key not in columns for key in data_config.action_sequence_keys):
        return None
    # Every order of the columns is tried, and one that makes the recorded numbers is enough.
    for places in itertools.permutations(range(_MAX_COLUMNS), len(columns)):
        numbers = stats_provenance.probe_frame(dict(zip(columns, places, strict=True)), columns, data_config)
        try:
            made = stats_provenance.probe_numbers(chain, _stand_ins(chain, columns) | numbers, "checkpoint")
        except tree.MissingKeyError:
            return None
        except errors.DataError:
            break
        if stats_provenance.is_same_probe(provenance["probe"], made):
            return None
    # The repack transform is long, and cameras do not change the statistics.
    only_theirs = [text for text in theirs if text not in ours and not text.startswith(_REPACK)]
    only_ours = [text for text in ours if text not in theirs and not text.startswith(_REPACK)]
    return (
        f"its statistics were computed with {' and '.join(only_theirs) or 'other code under the same names'}, "
        f"the config has {' and '.join(only_ours) or 'none of these'}"
    )


def _stand_ins(chain: Sequence[_transforms.DataTransformFn], columns: Mapping[str, Any]) -> dict[str, Any]:
    first = next(iter(chain), None)
    used = tree.flatten_dict(first.structure).values() if isinstance(first, _transforms.RepackTransform) else ()
    return stats_provenance.stand_ins_for([key for key in used if key not in columns])


def of_horizon(provenance: Provenance, action_horizon: int) -> str | None:
    """Return how a config's horizon differs from that of the statistics.

    None if it does not.
    """
    theirs = provenance["action_horizon"]
    if theirs == action_horizon:
        return None
    return f"its statistics were computed with an action horizon of {theirs}, the config has {action_horizon}"


def find(
    provenance: Provenance, data_config: DataConfig, action_horizon: int | None, *, source: pathlib.Path
) -> list[str]:
    """List the contradictions between statistics and a config.

    Args:
        provenance: The origin of the statistics.
        data_config: The data config, created.
        action_horizon: The model's horizon. None if statistics of another horizon are known to be meant.
        source: The file of the provenance, for messages.

    Raises:
        DataError: The provenance lacks entries.
    """
    try:
        found = [of_transforms(provenance, data_config)]
        if action_horizon is not None:
            found.append(of_horizon(provenance, action_horizon))
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise errors.DataError(
            f"{source}: not the origin of statistics ({type(e).__name__}: {e}). Copy the checkpoint again"
        ) from e
    return [text for text in found if text is not None]
