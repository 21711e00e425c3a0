"""Make an offline bundle of a checkpoint. See `bundle` for its contents."""

import datetime as dt
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shutil
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from openpi.models import checkpoint_params
from openpi.models import lora_merge
from openpi.policies import bundle as _bundle
from openpi.policies import checkpoint_folder
from openpi.policies import policy_config
from openpi.policies import step_settings
from openpi.shared import array_typing as at
from openpi.shared import errors
from openpi.shared import normalize
from openpi.shared import places
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig

logger = logging.getLogger(__name__)

# Free space in addition to the files, for the file system and for other programs that write at the same time.
_SPARE_BYTES = 64 * 2**20

_PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy")


class BundleExistsError(errors.UserError, FileExistsError):
    """The bundle's folder already exists."""


def export(
    config: TrainConfig,
    checkpoint_dir: pathlib.Path | str,
    out: pathlib.Path | str,
    *,
    dtype: at.DTypeLike | None = None,
    overwrite: bool = False,
) -> _bundle.Bundle:
    """Write a bundle. Its folder appears only when it is complete.

    Args:
        config: The config that the checkpoint was trained with. Changes by its run are found automatically.
        checkpoint_dir: A step's folder, or a run's folder for its newest step.
        out: Folder to make.
        dtype: Type of the weights. By default the one that the model computes in (bfloat16 unless the config sets
            another). The policy then answers exactly as from the checkpoint.
        overwrite: Replace an existing `out`.

    Raises:
        UserError: The checkpoint does not fit the config, merging its adapters changes the model's outputs, `out` exists,
            or there is not enough free space. Nothing is left behind.
    """
    # Everything that can go wrong with the source is checked before anything is written.
    out = pathlib.Path(out).expanduser().absolute()
    step_dir = checkpoint_folder.resolve(checkpoint_dir)
    if _bundle.find(step_dir) is not None:
        raise errors.DataError(f"{step_dir}: found a bundle, expected a checkpoint. Use the folder of a checkpoint")
    if out.exists() and not overwrite:
        raise BundleExistsError(f"{out}: already exists. Choose another folder, or replace it with --overwrite")
    places.check(out.parent, "--out")
    settings = policy_config.trained_settings(config, step_dir)
    config, data_config = settings.train_config, settings.data_config
    files = _other_files(step_dir, data_config)
    params, adapters = _inference_params(config, step_dir, dtype or policy_config.compute_dtype(config.model))
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_room(out.parent, params, files)
    # Written next to its place and renamed, so that nobody meets half a bundle.
    staging = _fresh_staging(out)
    try:
        _write(staging, params, files)
        manifest = _manifest(settings, params, adapters, staging)
        (staging / _bundle.MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
        _move(staging, out)
    except OSError as e:
        raise errors.UserError(f"{out}: the bundle could not be written ({e})") from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _bundle.Bundle(out, manifest)


def _other_files(step_dir: pathlib.Path, data_config: DataConfig) -> dict[str, pathlib.Path]:
    """Return statistics and tokenizer files, by their name in the bundle."""
    stats_dir = checkpoint_folder.find_norm_stats(step_dir, data_config.asset_id)
    normalize.load(stats_dir)  # raises an error if they are damaged
    files = {path.relative_to(step_dir).as_posix(): path for path in stats_dir.iterdir() if path.is_file()}
    tokenizers = _bundle.tokenizers_of(data_config.model_transforms)
    for tokenizer in tokenizers:
        if len(tokenizers) > 1 or not hasattr(tokenizer, "files"):
            raise errors.ConfigError(
                f"tokenizers: found {', '.join(type(t).__name__ for t in tokenizers)}, expected one tokenizer of this project"
            )
        files |= {f"{_bundle.TOKENIZER_DIR}/{name}": path for name, path in tokenizer.files().items()}
    return files


def _inference_params(
    config: TrainConfig, step_dir: pathlib.Path, dtype: at.DTypeLike
) -> tuple[at.Params, dict[str, Any] | None]:
    """Return the weights, and how adapters were merged.

    The latter is None if there are no adapters.
    """
    path = step_dir / checkpoint_folder.PARAMS_DIR
    params = checkpoint_params.restore_params(path, restore_type=np.ndarray)
    adapters = None
    model_config = lora_merge.without_adapters(config.model)
    if model_config != config.model:
        config.model.load(params)  # reports missing weights before anything is merged
        merged = lora_merge.merge(params, config.model)
        check = lora_merge.check(params, merged, config.model)
        logger.info("adapters (LoRA) merged: %s", check)
        if not check.is_good:
            raise errors.DataError(f"{path}: adapters cannot be merged into the weights: {check}. Nothing was written")
        adapters = {"merged": True, "difference": check.difference, "effect": check.effect}
        params = merged
    elif lora_merge.has_adapters(params):
        raise errors.DataError(
            f"{path}: found adapters (LoRA), but config '{config.name}' has none. Use the config that it was trained with"
        )
    model_config.load(params, remove_extra_params=False)
    return _cast(params, dtype), adapters


def _cast(params: at.Params, dtype: at.DTypeLike) -> at.Params:
    flat = flax.traverse_util.flatten_dict(params)
    # One by one, and without keeping the originals, so that little memory is used twice.
    return flax.traverse_util.unflatten_dict({path: np.asarray(flat.pop(path)).astype(dtype) for path in list(flat)})


def _check_room(folder: pathlib.Path, params: at.Params, files: dict[str, pathlib.Path]) -> None:
    needed = sum(leaf.nbytes for leaf in flax.traverse_util.flatten_dict(params).values())
    needed += sum(path.stat().st_size for path in files.values()) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise errors.UserError(
            f"{folder}: {free / 1e9:.2f} GB free, the bundle needs {needed / 1e9:.2f} GB. Free space or use another disk"
        )


def _fresh_staging(out: pathlib.Path) -> pathlib.Path:
    """Make a hidden folder next to the bundle's place.

    Those left by killed exports are deleted.
    """
    prefix = f".{out.name}.partial-"
    for left in out.parent.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix)
        if pid.isdecimal() and not pathlib.Path(f"/proc/{pid}").exists():
            logger.info("removing %s, left by an export that was killed", left)
            shutil.rmtree(left)
    staging = out.parent / f"{prefix}{os.getpid()}"
    staging.mkdir()
    return staging


def _write(folder: pathlib.Path, params: at.Params, files: dict[str, pathlib.Path]) -> None:
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / checkpoint_folder.PARAMS_DIR, {checkpoint_params.PARAMS_KEY: params})


def _manifest(
    settings: policy_config.TrainedSettings,
    params: at.Params,
    adapters: dict[str, Any] | None,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Describe the bundle whose other files are in `folder`."""
    config, step_dir = settings.train_config, settings.step_dir
    leaves = flax.traverse_util.flatten_dict(params).values()
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": _bundle.FORMAT,
        "version": _bundle.VERSION,
        # What a server needs to run the policy as it was trained.
        "config": config.name,
        "model": step_settings.describe_fields(config.model),
        "data": step_settings.describe_data(config),
        "normalization": step_settings.normalization_of(settings.data_config),
        "fps": settings.fps,
        "weights": {"dtype": str(jnp.dtype(next(iter(leaves)).dtype)), "count": sum(leaf.size for leaf in leaves)},
        "adapters": adapters,
        # Where it comes from, for people.
        "source": {
            "checkpoint": f"{step_dir.parent.name}/{step_dir.name}",
            "step": checkpoint_folder.step_of(step_dir),
        },
        "created": dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds"),
        "made_with": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
        # For `Bundle.verify`.
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _bundle.sha256_of(path)}
            for path in written
        },
    }


def _move(staging: pathlib.Path, out: pathlib.Path) -> None:
    """Move the bundle to its place.

    An old bundle is deleted only after that.
    """
    old = staging.with_name(f"{staging.name}-old")
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
