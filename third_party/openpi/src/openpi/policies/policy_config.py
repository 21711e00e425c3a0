"""Build a policy from a training config and one of its checkpoints."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from openpi import transforms as _transforms
from openpi.models import model as _model
from openpi.models import real_time_chunking as rtc
from openpi.policies import bundle as _bundle
from openpi.policies import checkpoint_folder
from openpi.policies import policy as _policy
from openpi.policies import run_settings
from openpi.policies import step_settings
from openpi.shared import errors
from openpi.shared import normalize
from openpi.training import config as _config
from openpi.training.run import run_config
from openpi.training.stats import contradictions

logger = logging.getLogger(__name__)

# One per camera slot.
_MAX_RESIZE_THREADS = 3


@dataclasses.dataclass(frozen=True)
class TrainedSettings:
    """Settings of a model's training that are needed to serve it."""

    step_dir: pathlib.Path
    """Folder of the step, or a bundle."""
    train_config: _config.TrainConfig
    """Its metadata for clients follows from these settings, too."""
    data_config: _config.DataConfig
    """Has no statistics. Those in the folder are used, even if those of the training set have changed since."""
    fps: float | None = None
    """Frames per second of the data. None if nothing in the folder says it."""


def trained_settings(train_config: _config.TrainConfig, checkpoint_dir: pathlib.Path | str) -> TrainedSettings:
    """Find out how the model in a folder was trained.

    The settings come from the folder itself. If it holds none, the config's defaults are assumed, and a warning says which.

    Args:
        train_config: The config that the checkpoint was trained with.
        checkpoint_dir: A step's folder, a run's folder for its newest step, or a bundle. Local or remote.

    Raises:
        UserError: The folder is not a checkpoint, or contradicts the config.
    """
    step_dir = checkpoint_folder.resolve(checkpoint_dir)
    if (bundle := _bundle.find(step_dir)) is None:
        recorded = run_settings.recorded(step_dir)
        train_config = run_settings.follow(train_config, recorded, step_dir)
        data_config = _as_recorded(train_config, recorded)
        is_known, fps = recorded is not None, None if recorded is None else recorded.fps
    else:
        train_config = bundle.fit(train_config)
        bundle.verify()
        data_config = bundle.fit_data(train_config.data.create(None, train_config.model))
        is_known, fps = True, bundle.fps
    asset_id = checkpoint_folder.asset_id_in(step_dir, data_config.asset_id)
    data_config = dataclasses.replace(data_config, asset_id=asset_id)
    # What the statistics belong to must not contradict the rest.
    folder = step_dir / checkpoint_folder.ASSETS_DIR / (asset_id or "")
    if (provenance := normalize.load_provenance(folder)) is not None:
        # Statistics that a config takes from elsewhere say nothing about horizon and rate.
        is_own = train_config.data.assets.assets_dir is None
        horizon = train_config.model.action_horizon if is_own and not is_known else None
        source = folder / normalize.PROVENANCE_NAME
        _refuse(step_dir, train_config, contradictions.find(provenance, data_config, horizon, source=source))
        fps = contradictions.fps_of(provenance) if fps is None and is_own else fps
    _say_assumed(step_dir, train_config, data_config, fps, is_known=is_known)
    metadata = step_settings.contract(train_config, fps)
    return TrainedSettings(step_dir, dataclasses.replace(train_config, policy_metadata=metadata), data_config, fps)


def _as_recorded(config: _config.TrainConfig, recorded: step_settings.StepSettings | None) -> _config.DataConfig:
    """Create the data config with its recorded normalization and statistics."""
    try:
        data_config = config.data.create(None, config.model)
    except ValueError as e:
        if recorded is None:
            raise
        raise errors.ConfigError(f"{recorded.source}: {e}. Serve it with the program version that made it") from e
    changes: dict[str, Any] = {}
    if recorded is not None and recorded.normalization is not None:
        changes["use_quantile_norm"] = recorded.normalization == step_settings.QUANTILES
    if recorded is not None and recorded.asset_id is not None:
        changes["asset_id"] = recorded.asset_id
    return dataclasses.replace(data_config, **changes)


def _refuse(step_dir: pathlib.Path, config: _config.TrainConfig, found: list[str]) -> None:
    if found:
        raise errors.ConfigError(
            f"{step_dir}: contradicts config '{config.name}': {'; '.join(found)}. Use the config that it was trained with. "
            f"If flags changed that config, copy the run's '{run_config.FILE_NAME}' into {step_dir.parent}"
        )


def _say_assumed(
    step_dir: pathlib.Path,
    config: _config.TrainConfig,
    data_config: _config.DataConfig,
    fps: float | None,
    *,
    is_known: bool,
) -> None:
    """Warn of everything that only the config says, in one line."""
    assumed: dict[str, Any] = {}
    if fps is None and "fps" in (config.policy_metadata or {}):
        assumed["fps"] = (config.policy_metadata or {})["fps"]
    if not is_known:
        assumed["action_horizon"] = config.model.action_horizon
        assumed |= step_settings.describe_data(config)
        assumed["normalization"] = step_settings.normalization_of(data_config)
    if assumed:
        words = ", ".join(f"{key} {value!r}" for key, value in assumed.items() if isinstance(value, int | float | str))
        logger.warning("%s: not recorded there, so assumed from config '%s': %s", step_dir, config.name, words)


def create_trained_policy(
    train_config: _config.TrainConfig, checkpoint_dir: pathlib.Path | str, **options: Any
) -> _policy.Policy:
    """Load a checkpoint or a bundle. You need only its folder.

    No dataset and no training assets are read. The tokenizer of a large model comes from the bundle, or else from the
    download cache.

    Args:
        train_config: The config that the checkpoint was trained with.
        checkpoint_dir: A step's folder, a run's folder for its newest step, or a bundle. Local or remote.
        options: `repack_transforms`, `sample_kwargs`, `default_prompt`, `norm_stats` and `rtc_methods` of `create_policy`.

    Raises:
        UserError: The folder is not a checkpoint, not one of this config, or has no statistics.
    """
    return create_policy(trained_settings(train_config, checkpoint_dir), **options)


def create_policy(
    settings: TrainedSettings,
    *,
    repack_transforms: _transforms.Group | None = None,
    sample_kwargs: Mapping[str, Any] | None = None,
    default_prompt: str | None = None,
    norm_stats: dict[str, normalize.NormStats] | None = None,
    rtc_methods: Sequence[rtc.Method] | None = None,
) -> _policy.Policy:
    """Load the model of a checkpoint or a bundle.

    Args:
        settings: See `trained_settings`.
        repack_transforms: Outermost transforms, for clients with other keys.
        sample_kwargs: Fixed arguments of the model's `sample_actions`, for example `{"num_steps": 5}`.
        default_prompt: For requests without a prompt. Has priority over the config's default.
        norm_stats: Used instead of those saved in the checkpoint.
        rtc_methods: Methods of real-time chunking that requests may use. See `Policy`.

    Raises:
        UserError: The parameters are not those of the config, or there are no statistics.
    """
    # Small files first, because reading the weights takes longest.
    step_dir, train_config, data_config = settings.step_dir, settings.train_config, settings.data_config
    if norm_stats is None:
        norm_stats = checkpoint_folder.load_norm_stats(step_dir, data_config.asset_id)
    logger.info("loading '%s' from %s", train_config.name, step_dir)
    params = _model.restore_params(
        step_dir / checkpoint_folder.PARAMS_DIR, restore_type=jax.Array, dtype=compute_dtype(train_config.model)
    )
    # Outputs go through the inverse transforms in reverse order.
    repack = repack_transforms or _transforms.Group()
    data, model = data_config.data_transforms, data_config.model_transforms
    quantiles = data_config.use_quantile_norm
    return _policy.Policy(
        train_config.model.load(params),
        transforms=[
            *repack.inputs,
            _transforms.InjectDefaultPrompt(default_prompt),
            *data.inputs,
            _transforms.Normalize(norm_stats, use_quantiles=quantiles),
            *with_resize_threads(model.inputs),
        ],
        output_transforms=[
            *model.outputs,
            _transforms.Unnormalize(norm_stats, use_quantiles=quantiles),
            *data.outputs,
            *repack.outputs,
        ],
        sample_kwargs=sample_kwargs,
        metadata=train_config.policy_metadata,
        rtc_methods=rtc_methods,
    )


def with_resize_threads(transforms: Sequence[_transforms.DataTransformFn]) -> list[_transforms.DataTransformFn]:
    """Resize the cameras of one observation in parallel.

    The robot waits for the result.
    """
    num_threads = min(_MAX_RESIZE_THREADS, os.cpu_count() or 1)
    return [
        dataclasses.replace(t, num_threads=num_threads) if isinstance(t, _transforms.ResizeImages) else t
        for t in transforms
    ]


def compute_dtype(model_config: _model.BaseModelConfig) -> Any:
    """Return the type of a served model's weights.

    It is the type that the model computes in: bfloat16 unless the config sets another.
    """
    return jnp.dtype(getattr(model_config, "dtype", "bfloat16"))
