"""An offline bundle: one folder with everything that serving a policy needs.

A robot's machine then needs no network and no cache.

    bundle.json              what it is, how it was made, size and SHA-256 of every other file
    params/                  weights for inference (orbax), averaged if training averaged, adapters (LoRA) merged
    assets/<asset_id>/       normalization statistics
    tokenizer/               files of the tokenizer

It has the layout of a step's folder, and you can use it as one. `bundle_writer` makes it.
"""

from collections.abc import Mapping
import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import pathlib
from typing import Any

from openpi import transforms as _transforms
from openpi.models import lora_merge
from openpi.policies import checkpoint_folder
from openpi.policies import run_settings
from openpi.policies import step_settings
from openpi.shared import errors
from openpi.shared import normalize
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig

logger = logging.getLogger(__name__)

MANIFEST_FILE = "bundle.json"
TOKENIZER_DIR = "tokenizer"

FORMAT = "openpi-bundle"
VERSION = 1
"""Increased when older programs can no longer read the folder."""

_HASH_THREADS = 4
_REMEDY = "Copy or export it again"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read.

    `verify` checks the other files.
    """

    folder: pathlib.Path
    manifest: Mapping[str, Any]

    @property
    def config(self) -> str:
        """Name of the training config."""
        return self.manifest["config"]

    @property
    def checkpoint(self) -> str:
        """Run and step from which it was made, such as "run1/20000"."""
        return self.manifest["source"]["checkpoint"]

    @property
    def step(self) -> int | None:
        """Training step from which it was made."""
        return self.manifest["source"]["step"]

    @property
    def fps(self) -> float | None:
        """Frames per second of the data, or None if unknown."""
        return self.manifest.get("fps")

    @property
    def asset_id(self) -> str | None:
        """Subfolder of its assets that has the statistics."""
        start, end = f"{checkpoint_folder.ASSETS_DIR}/", f"/{normalize.FILE_NAME}"
        names = [name for name in self.manifest["files"] if name.startswith(start) and name.endswith(end)]
        return names[0].removeprefix(start).removesuffix(end) if names else None

    def verify(self) -> None:
        """Compare every file with its size and SHA-256.

        Raises:
            DataError: Files are missing or damaged. The message names them.
        """
        with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as executor:
            found = executor.map(self._problem, *zip(*self.manifest["files"].items(), strict=True))
            problems = [problem for problem in found if problem is not None]
        if problems:
            raise errors.DataError(
                f"{self.folder}: {len(problems)} files of the bundle are missing or damaged: {', '.join(problems[:3])}. "
                + _REMEDY
            )

    def _problem(self, name: str, expected: Mapping[str, Any]) -> str | None:
        path = self.folder / name
        if not path.is_file():
            return f"'{name}' is missing"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"'{name}' has {size} bytes, expected {expected['bytes']}"
        return None if sha256_of(path) == expected["sha256"] else f"'{name}' has another SHA-256"

    def fit(self, config: TrainConfig) -> TrainConfig:
        """Return the training config with the bundle's model and settings.

        The current defaults of the config do not matter.

        Raises:
            ConfigError: It is not the config of the bundle, or has other fields.
        """
        if config.name != self.config:
            raise errors.ConfigError(
                f"{self.folder}: found config '{config.name}', expected the bundle's '{self.config}'. Omit the config"
            )
        config, _ = run_settings.apply(config, self.manifest["model"], self.manifest["data"], source=str(self.folder))
        if self.manifest["adapters"] is None:
            return config
        return dataclasses.replace(config, model=lora_merge.without_adapters(config.model))

    def fit_data(self, data_config: DataConfig) -> DataConfig:
        """Return the data config with the bundle's tokenizer and normalization."""
        recorded = self.manifest["normalization"]
        if recorded != (by_config := step_settings.normalization_of(data_config)):
            logger.warning(
                "%s: normalizes by %s, as recorded, although its config now says %s", self.folder, recorded, by_config
            )
        return dataclasses.replace(
            data_config,
            asset_id=self.asset_id,
            use_quantile_norm=recorded == step_settings.QUANTILES,
            model_transforms=_with_tokenizer(data_config.model_transforms, self.folder / TOKENIZER_DIR),
        )


def find(folder: pathlib.Path) -> Bundle | None:
    """Read the manifest of a bundle. Return None for any other folder.

    Raises:
        DataError: The bundle is incomplete, or its manifest is damaged or has a newer version.
    """
    # Only bundles have a tokenizer folder, so without a manifest one of them is incomplete.
    path = folder / MANIFEST_FILE
    if not path.exists():
        if (folder / TOKENIZER_DIR).is_dir():
            raise errors.DataError(f"{folder}: incomplete bundle, '{MANIFEST_FILE}' not found. {_REMEDY}")
        return None
    # Format and version come first, because another version may have other fields.
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"found format {manifest['format']!r:.40}, expected '{FORMAT}'")
        if manifest["version"] > VERSION:
            raise errors.DataError(
                f"{path}: found version {manifest['version']}, expected at most {VERSION}. Update this program"
            )
        _check_manifest(manifest)
    except errors.DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise errors.DataError(f"{path}: not a bundle's manifest ({type(e).__name__}: {e}). {_REMEDY}") from e
    return Bundle(folder, manifest)


def config_name(folder: pathlib.Path, given: str | None) -> str:
    """Return the name of the training config of a step's folder.

    It is the given name, or the one in the bundle.

    Raises:
        ConfigError: No name is given, and the folder is not a bundle.
    """
    if given is not None:
        return given
    if (found := find(folder)) is None:
        raise errors.ConfigError(f"{folder}: not a bundle, so its config must be named. Add --policy.config")
    return found.config


def tokenizers_of(group: _transforms.Group) -> list[Any]:
    """Return the different tokenizers in the transforms of a group."""
    found = {id(t.tokenizer): t.tokenizer for t in (*group.inputs, *group.outputs) if hasattr(t, "tokenizer")}
    return list(found.values())


def sha256_of(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_tokenizer(group: _transforms.Group, folder: pathlib.Path) -> _transforms.Group:
    moved = {id(tokenizer): tokenizer.from_folder(folder) for tokenizer in tokenizers_of(group)}

    def move(transform: _transforms.DataTransformFn) -> _transforms.DataTransformFn:
        if not hasattr(transform, "tokenizer"):
            return transform
        return dataclasses.replace(transform, tokenizer=moved[id(transform.tokenizer)])  # type: ignore[type-var]

    return _transforms.Group(inputs=[move(t) for t in group.inputs], outputs=[move(t) for t in group.outputs])


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise an error if the manifest is incomplete.

    It may not name files outside the bundle either.
    """
    for key, kind in {"config": str, "model": dict, "data": dict, "source": dict, "files": dict}.items():
        if not isinstance(manifest[key], kind):
            raise TypeError(f"'{key}' is {manifest[key]!r:.40}")
    if manifest["normalization"] not in (step_settings.QUANTILES, step_settings.Z_SCORES):
        raise ValueError(f"'normalization' is {manifest['normalization']!r:.40}")
    step_settings.checked_fps(manifest.get("fps"))
    if not manifest["files"] or not {"checkpoint", "step"} <= manifest["source"].keys() or "adapters" not in manifest:
        raise ValueError("'files', 'source' or 'adapters' lacks entries")
    for name, expected in manifest["files"].items():
        if pathlib.PurePosixPath(name).is_absolute() or ".." in name.split("/"):
            raise ValueError(f"'files' names {name!r:.80}, outside the bundle")
        if not isinstance(expected["bytes"], int) or not isinstance(expected["sha256"], str):
            raise TypeError(f"'files' has no size or SHA-256 of {name!r:.80}")
