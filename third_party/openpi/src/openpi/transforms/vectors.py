"""Transforms of states and actions: scale, delta, width."""

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
"""Nested dict whose leaves are `NormStats`, at the paths of the data that they describe."""

_EPSILON = 1e-6
"""Keeps constant dimensions from dividing by zero (formula: as the released checkpoints were trained with)."""


def _check_quantiles(norm_stats: NormStatsTree) -> None:
    lacking = [path for path, stats in tree.flatten_dict(norm_stats).items() if stats.q01 is None or stats.q99 is None]
    if lacking:
        raise errors.DataError(
            f"norm stats: q01 and q99 are missing for {lacking}, and quantile normalisation needs them; "
            "compute the norm stats again"
        )


@dataclasses.dataclass(frozen=True)
class Normalize(DataTransformFn):
    """Scale data to about [-1, 1]: z-score (x-mean)/(std+1e-6), or 2*(x-q01)/(q99-q01+1e-6)-1, without clipping.

    Raises:
        DataError: Quantiles are wanted and the stats lack them (at construction), or data are wider than their stats.
    """

    norm_stats: NormStatsTree | None
    use_quantiles: bool = False
    # Whether every key of the stats must be in the data.
    strict: bool = False

    def __post_init__(self) -> None:
        if self.norm_stats is not None and self.use_quantiles:
            _check_quantiles(self.norm_stats)

    def __call__(self, data: DataDict) -> DataDict:
        """Normalise every leaf that has stats; a leaf narrower than its stats uses the first of them."""
        if self.norm_stats is None:
            return data
        return tree.apply_tree(data, self.norm_stats, self._normalize, strict=self.strict)

    def _normalize(self, x: np.ndarray, stats: NormStats) -> np.ndarray:
        dim = x.shape[-1]
        if dim > stats.mean.shape[-1]:
            raise errors.DataError(
                f"norm stats: data have {dim} numbers, expected at most {stats.mean.shape[-1]}; "
                "compute the norm stats again for this data"
            )
        if self.use_quantiles:
            low, high = stats.q01[..., :dim], stats.q99[..., :dim]
            return (x - low) / (high - low + _EPSILON) * 2.0 - 1.0
        return (x - stats.mean[..., :dim]) / (stats.std[..., :dim] + _EPSILON)


@dataclasses.dataclass(frozen=True)
class Unnormalize(DataTransformFn):
    """Invert `Normalize`. Every key of the stats must be in the data; numbers beyond the stats' width stay as they are."""

    norm_stats: NormStatsTree | None
    use_quantiles: bool = False

    def __post_init__(self) -> None:
        if self.norm_stats is not None and self.use_quantiles:
            _check_quantiles(self.norm_stats)

    def __call__(self, data: DataDict) -> DataDict:
        """Bring every leaf that has stats back to its unit."""
        if self.norm_stats is None:
            return data
        return tree.apply_tree(data, self.norm_stats, self._unnormalize, strict=True)

    def _unnormalize(self, x: np.ndarray, stats: NormStats) -> np.ndarray:
        dim = min(x.shape[-1], stats.mean.shape[-1])
        if self.use_quantiles:
            low, high = stats.q01[..., :dim], stats.q99[..., :dim]
            known = (x[..., :dim] + 1.0) / 2.0 * (high - low + _EPSILON) + low
            return np.concatenate([known, x[..., dim:]], axis=-1)
        # Beyond the stats the z-score counts as mean 0, std 1, epsilon included.
        mean = pad_to_dim(stats.mean[..., :dim], x.shape[-1])
        std = pad_to_dim(stats.std[..., :dim], x.shape[-1], value=1.0)
        return x * (std + _EPSILON) + mean


@dataclasses.dataclass(frozen=True)
class SubsampleActions(DataTransformFn):
    """Keep every `stride`-th action."""

    stride: int

    def __call__(self, data: DataDict) -> DataDict:
        """Thin out `actions` [h, d] along time."""
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
    """Express the masked numbers of `actions` [..., h, d] relative to `state` [..., s]. None: nothing happens."""

    mask: Sequence[bool] | None

    def __call__(self, data: DataDict) -> DataDict:
        """Subtract the state; a sample without actions comes back as it is."""
        if self.mask is None or "actions" not in data:
            return data
        return _shift_actions(data, self.mask, -1)


@dataclasses.dataclass(frozen=True)
class AbsoluteActions(DataTransformFn):
    """Invert `DeltaActions` of the same mask."""

    mask: Sequence[bool] | None

    def __call__(self, data: DataDict) -> DataDict:
        """Add the state; a sample without actions comes back as it is."""
        if self.mask is None or "actions" not in data:
            return data
        return _shift_actions(data, self.mask, 1)


@dataclasses.dataclass(frozen=True)
class PadStatesAndActions(DataTransformFn):
    """Widen `state` and `actions` with zeros to the model's width; wider data stay as they are."""

    model_action_dim: int

    def __call__(self, data: DataDict) -> DataDict:
        """Pad the last axis of both (of `state` alone in a sample without actions)."""
        padded = {key: pad_to_dim(data[key], self.model_action_dim) for key in ("state", "actions") if key in data}
        return {**data, **padded}


def pad_to_dim(x: np.ndarray, target_dim: int, axis: int = -1, value: float = 0.0) -> np.ndarray:
    """Widen one axis to `target_dim` by appending `value`; an axis that is long enough stays."""
    missing = target_dim - x.shape[axis]
    if missing <= 0:
        return x
    shape = list(x.shape)
    shape[axis] = missing
    # np.pad gives the same and takes ten times as long on arrays of this size.
    return np.concatenate([x, np.full(shape, value, x.dtype)], axis)


def make_bool_mask(*dims: int) -> tuple[bool, ...]:
    """Spell out a mask by runs: n gives n times True, -n n times False, 0 nothing.

    For example `make_bool_mask(6, -1, 6, -1)`: joints True, grippers False, of a robot with two arms.
    """
    return tuple(dim > 0 for dim in dims for _ in range(abs(dim)))
