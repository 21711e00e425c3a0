"""Transforms of states and actions: scale, deltas, stride and width."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, TypeAlias

import numpy as np

from openpi.shared import errors
from openpi.shared.normalize import NormStats
from openpi.transforms import tree
from openpi.transforms.base import DataDict
from openpi.transforms.base import DataTransformFn

NormStatsTree: TypeAlias = Mapping[str, Any]
"""Nested dict of `NormStats`, at the paths of the data that they describe."""

_EPSILON = 1e-6
"""Avoids a division by zero in constant dimensions (formula: as in the training of the released checkpoints)."""


def _check_quantiles(norm_stats: NormStatsTree) -> None:
    lacking = [path for path, stats in tree.flatten_dict(norm_stats).items() if stats.q01 is None or stats.q99 is None]
    if lacking:
        raise errors.DataError(
            f"norm stats: q01 and q99 are missing for {lacking}, and quantile normalization needs them. "
            "Compute the norm stats again"
        )


def _quantile_range(stats: NormStats, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return q01 and q99 of the first `dim` numbers."""
    # `_check_quantiles` has already refused stats without them.
    assert stats.q01 is not None
    assert stats.q99 is not None
    return stats.q01[..., :dim], stats.q99[..., :dim]


@dataclasses.dataclass(frozen=True)
class Normalize(DataTransformFn):
    """Scale data to about [-1, 1], without clipping.

    The result is the z-score (x-mean)/(std+1e-6), or 2*(x-q01)/(q99-q01+1e-6)-1 with quantiles.

    Raises:
        DataError: The stats lack the quantiles to use (at construction), or data are wider than their stats.
    """

    norm_stats: NormStatsTree | None
    use_quantiles: bool = False
    # Whether every key of the stats must be in the data.
    strict: bool = False

    def __post_init__(self) -> None:
        if self.norm_stats is not None and self.use_quantiles:
            _check_quantiles(self.norm_stats)

    def __call__(self, data: DataDict) -> DataDict:
        """Normalize every leaf that has stats.

        A leaf that is narrower than its stats uses the first of them.
        """
        if self.norm_stats is None:
            return data
        return tree.apply_tree(data, self.norm_stats, self._normalize, strict=self.strict)

    def _normalize(self, x: np.ndarray, stats: NormStats) -> np.ndarray:
        dim = x.shape[-1]
        if dim > stats.mean.shape[-1]:
            raise errors.DataError(
                f"norm stats: data have {dim} numbers, expected at most {stats.mean.shape[-1]}. "
                "Compute the norm stats again for this data"
            )
        if self.use_quantiles:
            low, high = _quantile_range(stats, dim)
            return (x - low) / (high - low + _EPSILON) * 2.0 - 1.0
        return (x - stats.mean[..., :dim]) / (stats.std[..., :dim] + _EPSILON)


@dataclasses.dataclass(frozen=True)
class Unnormalize(DataTransformFn):
    """Invert `Normalize`.

    Every key of the stats must be in the data. Numbers beyond the stats' width stay as they are.
    """

    norm_stats: NormStatsTree | None
    use_quantiles: bool = False

    def __post_init__(self) -> None:
        if self.norm_stats is not None and self.use_quantiles:
            _check_quantiles(self.norm_stats)

    def __call__(self, data: DataDict) -> DataDict:
        """Convert every leaf that has stats back to its unit."""
        if self.norm_stats is None:
            return data
        return tree.apply_tree(data, self.norm_stats, self._unnormalize, strict=True)

    def _unnormalize(self, x: np.ndarray, stats: NormStats) -> np.ndarray:
        dim = min(x.shape[-1], stats.mean.shape[-1])
        if self.use_quantiles:
            low, high = _quantile_range(stats, dim)
            known = (x[..., :dim] + 1.0) / 2.0 * (high - low + _EPSILON) + low
            return np.concatenate([known, x[..., dim:]], axis=-1)
        # Beyond the stats, mean 0 and std 1 apply, and epsilon is added there too.
        mean = pad_to_dim(stats.mean[..., :dim], x.shape[-1])
        std = pad_to_dim(stats.std[..., :dim], x.shape[-1], value=1.0)
        return x * (std + _EPSILON) + mean


@dataclasses.dataclass(frozen=True)
class SubsampleActions(DataTransformFn):
    """Keep every `stride`-th action."""

    stride: int

    def __call__(self, data: DataDict) -> DataDict:
        """Subsample `actions` [h, d] along time."""
        return {**data, "actions": data["actions"][:: self.stride]}


def _shift_actions(data: DataDict, mask: Sequence[bool], sign: int) -> DataDict:
    """Add `sign` times the state to the masked numbers of every action."""
    actions, state = np.asarray(data["actions"]), np.asarray(data["state"])
    dim = len(mask)
    if actions.shape[-1] < dim or state.shape[-1] < dim:
        raise errors.DataError(
            f"delta actions: actions {actions.shape} and state {state.shape} need at least {dim} numbers each"
        )
    offset = np.where(np.asarray(mask), state[..., :dim], 0)[..., None, :]  # [..., 1, dim]
    # Integer actions would lose the fraction of the state.
    shifted = actions.astype(np.result_type(actions, offset, np.float32))
    shifted[..., :dim] += sign * offset
    return {**data, "actions": shifted}


@dataclasses.dataclass(frozen=True)
class DeltaActions(DataTransformFn):
    """Express the masked numbers of `actions` relative to `state`.

    Shapes: actions [..., h, d], state [..., s]. With the mask None, nothing changes.
    """

    mask: Sequence[bool] | None

    def __call__(self, data: DataDict) -> DataDict:
        """Subtract the state from the actions, if the sample has any."""
        if self.mask is None or "actions" not in data:
            return data
        return _shift_actions(data, self.mask, -1)


@dataclasses.dataclass(frozen=True)
class AbsoluteActions(DataTransformFn):
    """Invert `DeltaActions` of the same mask."""

    mask: Sequence[bool] | None

    def __call__(self, data: DataDict) -> DataDict:
        """Add the state to the actions, if the sample has any."""
        if self.mask is None or "actions" not in data:
            return data
        return _shift_actions(data, self.mask, 1)


@dataclasses.dataclass(frozen=True)
class PadStatesAndActions(DataTransformFn):
    """Pad `state` and `actions` with zeros to the model's width.

    Wider data stay as they are.
    """

    model_action_dim: int

    def __call__(self, data: DataDict) -> DataDict:
        """Pad the last axis of both, if the sample has them."""
        padded: DataDict = {
            key: pad_to_dim(data[key], self.model_action_dim) for key in ("state", "actions") if key in data
        }
        return {**data, **padded}


def pad_to_dim(x: np.ndarray, target_dim: int, axis: int = -1, value: float = 0.0) -> np.ndarray:
    """Pad one axis to `target_dim` by appending `value`.

    An axis that is long enough stays.
    """
    missing = target_dim - x.shape[axis]
    if missing <= 0:
        return x
    shape = list(x.shape)
    shape[axis] = missing
    # np.pad gives the same result, but takes ten times as long on arrays of this size.
    return np.concatenate([x, np.full(shape, value, x.dtype)], axis)


def make_bool_mask(*dims: int) -> tuple[bool, ...]:
    """Return a mask described by runs.

    n adds n times True, -n adds n times False, and 0 adds nothing. For example, `make_bool_mask(6, -1, 6, -1)` is True for the joints and False for the grippers of a robot
    with two arms.
    """
    return tuple(dim > 0 for dim in dims for _ in range(abs(dim)))
