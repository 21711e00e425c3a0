"""The metadata by which clients recognize a policy that does not fit."""

from collections.abc import Mapping, Sequence
import hashlib
import pathlib
from typing import Any

import numpy as np

from openpi import transforms as _transforms
from openpi.models import model as _model
from openpi.policies import bundle as _bundle
from openpi.policies import checkpoint_folder
from openpi.policies import policy as _policy
from openpi.shared import normalize
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig
from openpi_client import protocol

FEATURES = (
    protocol.FEATURE_JPEG_IMAGES,
    protocol.FEATURE_KEEP_CONNECTION,
    protocol.FEATURE_ERROR_CODES,
    protocol.FEATURE_DEADLINE,
    protocol.FEATURE_REPLACE_OLDER,
    protocol.FEATURE_TIMING,
    protocol.FEATURE_REQUEST_ID,
)
"""What this server supports in addition to openpi's original messages."""


def describe_server(features: Sequence[str] = ()) -> dict[str, Any]:
    """Return the metadata that every policy shares, with its own `features` added."""
    return {protocol.PROTOCOL_KEY: {"features": [*FEATURES, *features]}}


def describe_checkpoint(
    train_config: TrainConfig,
    data_config: DataConfig,
    step_dir: pathlib.Path,
    *,
    example: Mapping[str, Any] | None,
    default_prompt: str | None,
    policy: _policy.Policy | None = None,
) -> dict[str, Any]:
    """Return the metadata of a checkpoint's policy.

    It holds the config's own metadata, what was trained and how, and the protocol. All values are plain, because they
    travel on the wire. Folders appear by name, never as paths of this machine.

    Args:
        train_config: The config of the checkpoint.
        data_config: Its data config, created.
        step_dir: Folder of the step, or a bundle. A bundle reports the step that it was made from.
        example: An observation as clients send it, if one is known for the robot.
        default_prompt: The prompt for requests that carry none.
        policy: The policy made from the checkpoint. It knows which features it has beyond plain requests.
    """
    stats_file = checkpoint_folder.find_norm_stats(step_dir, data_config.asset_id) / normalize.FILE_NAME
    bundle = _bundle.find(step_dir)
    details = {
        "config": train_config.name,
        "checkpoint": f"{step_dir.parent.name}/{step_dir.name}" if bundle is None else bundle.checkpoint,
        "step": checkpoint_folder.step_of(step_dir) if bundle is None else bundle.step,
        "model": train_config.model.model_type.value,
        "action_horizon": train_config.model.action_horizon,
        "state_dim": None if example is None else _state_dim(example),
        "image_size": list(_model.IMAGE_RESOLUTION),
        "delta_mask": _delta_mask(data_config.data_transforms),
        "norm_stats_sha256": hashlib.sha256(stats_file.read_bytes()).hexdigest(),
        "prompt": default_prompt,
    }
    known = {key: value for key, value in details.items() if value is not None}
    left_over = {} if policy is None else policy.left_over.metadata
    features = [protocol.FEATURE_RTC] if left_over else []
    return {**known, **(train_config.policy_metadata or {}), **left_over, **describe_server(features)}


def _state_dim(example: Mapping[str, Any]) -> int | None:
    return int(np.size(example["state"])) if "state" in example else None


def _delta_mask(data_transforms: _transforms.Group) -> list[bool] | None:
    """Return which numbers of an action are relative to the state.

    None means that the model sees all of them as they are.
    """
    for transform in data_transforms.inputs:
        if isinstance(transform, _transforms.DeltaActions) and transform.mask is not None:
            return [bool(is_delta) for is_delta in transform.mask]
    return None
