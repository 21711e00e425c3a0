"""Load the initial parameters of a training run.

They come from a checkpoint, from the PaliGemma release, or stay random.
"""

from collections.abc import Mapping
import dataclasses
import logging
import pathlib
import re
from typing import Any, Protocol, runtime_checkable
import zipfile

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from openpi.models import model as _model
from openpi.shared import download
from openpi.shared import errors
from openpi.shared import storage_errors

logger = logging.getLogger(__name__)

PALIGEMMA_URL = "gs://vertex-model-garden-paligemma-us/paligemma/pt_224.npz"

# The action expert is the second expert of the language model. Everything that is not below "PaliGemma" belongs to pi0.
_NOT_IN_PALIGEMMA = r"(?!PaliGemma/).*|PaliGemma/llm/.*(_1/|lora).*"
# Paths of parameters that a checkpoint without adapters lacks.
_ADAPTERS = ".*lora.*"

# Nested dict of arrays or ShapeDtypeStructs.
Params = dict[str, Any]


@runtime_checkable
class WeightLoader(Protocol):
    """Fills in initial parameters.

    A loader may also have a method `check(params)`. It is called before anything is compiled, and raises an error if `load`
    would fail.
    """

    def load(self, params: Params) -> Params:
        """Return `params` with the loaded ones in place.

        Args:
            params: Nested dict of ShapeDtypeStructs, the tree that the model expects.

        Returns:
            The same tree. Leaves that were not loaded are the given ShapeDtypeStructs.
        """
        ...


@dataclasses.dataclass(frozen=True)
class NoOpWeightLoader(WeightLoader):
    """Loads nothing, so that training starts from random parameters."""

    def load(self, params: Params) -> Params:
        """Return the tree unchanged."""
        return params


@dataclasses.dataclass(frozen=True)
class CheckpointWeightLoader(WeightLoader):
    """Loads a whole `params` folder, made by this project or released.

    Adapters (LoRA) that it lacks start fresh.
    """

    # Folder or URL of the checkpoint's params, for example ./checkpoints/debug/debug/9/params.
    params_path: str

    def check(self, params: Params) -> None:
        """Compare the stored paths and shapes with the expected ones.

        No parameter is read.

        Raises:
            MissingFileError: The checkpoint does not exist.
            DataError: It belongs to another model, or it is not a checkpoint.
        """
        expected = flax.traverse_util.flatten_dict(params, sep="/")
        found = _stored_shapes(download.maybe_download(self.params_path), self.params_path)
        _check_fits(found, expected, fill_missing=_ADAPTERS, source=self.params_path)

    def load(self, params: Params) -> Params:
        """Restore the folder as numpy arrays and merge it into `params`."""
        loaded = _model.restore_params(download.maybe_download(self.params_path), restore_type=np.ndarray)
        return merge_params(loaded, params, fill_missing=_ADAPTERS, source=self.params_path)


@dataclasses.dataclass(frozen=True)
class PaliGemmaWeightLoader(WeightLoader):
    """Loads the image tower and the language model of PaliGemma.

    Everything else starts fresh.
    """

    def check(self, params: Params) -> None:
        """Download the file if it is not in the cache.

        `load` checks its contents.

        Raises:
            UserError: The file cannot be downloaded.
        """
        del params
        download.maybe_download(PALIGEMMA_URL, gs={"token": "anon"})

    def load(self, params: Params) -> Params:
        """Read the released npz (keys `params/img/...`, `params/llm/...`) and merge it into `params`."""
        path = download.maybe_download(PALIGEMMA_URL, gs={"token": "anon"})
        try:
            with np.load(path, allow_pickle=False) as archive:
                loaded = {"PaliGemma": flax.traverse_util.unflatten_dict(dict(archive), sep="/")["params"]}
        # An npz file is a zip file. A truncated one, or an HTML page in its place, fails in any of these ways.
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as e:
            raise errors.DataError(
                f"{path}: not PaliGemma's weights ({type(e).__name__}: {e}). Delete the file to download it again"
            ) from e
        return merge_params(loaded, params, fill_missing=_NOT_IN_PALIGEMMA, source=str(path))


def merge_params(loaded: Params, expected: Params, *, fill_missing: str, source: str) -> Params:
    """Put loaded arrays into the expected tree, with the expected dtypes.

    Args:
        loaded: Nested dict of arrays.
        expected: Nested dict of arrays or ShapeDtypeStructs.
        fill_missing: Pattern of paths ("a/b/c", full match) that `loaded` may lack. They keep their expected leaf.
        source: Name of what was loaded, for messages.

    Raises:
        DataError: Leaves are missing, have another shape, or do not hold floating-point numbers. The message lists their
            paths.
    """
    flat_loaded = flax.traverse_util.flatten_dict(loaded, sep="/")
    flat_expected = flax.traverse_util.flatten_dict(expected, sep="/")
    _check_fits(flat_loaded, flat_expected, fill_missing=fill_missing, source=source)
    merged = {
        path: flat_loaded[path].astype(leaf.dtype) if path in flat_loaded else leaf
        for path, leaf in flat_expected.items()
    }
    unused = sorted(flat_loaded.keys() - flat_expected.keys())
    if unused:
        logger.warning("%s: %d parameters are not in the model and are ignored: %s", source, len(unused), unused[:8])
    return flax.traverse_util.unflatten_dict(merged, sep="/")


def check_result(loaded: Params, expected: Params, *, source: str) -> None:
    """Compare the result of a loader with the tree it was given.

    Raises:
        DataError: Parameters are missing, unknown, or of another shape or type. The message lists their paths.
    """
    found, wanted = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (loaded, expected))
    problems = [f"'{path}' is missing" for path in wanted.keys() - found.keys()]
    problems += [f"'{path}' is not in the model" for path in found.keys() - wanted.keys()]
    for path in found.keys() & wanted.keys():
        here, there = ((tuple(leaf.shape), str(leaf.dtype)) for leaf in (found[path], wanted[path]))
        if here != there:
            problems.append(f"'{path}': found {here[1]} {here[0]}, expected {there[1]} {there[0]}")
    if problems:
        raise errors.DataError(
            f"{source}: returned parameters that do not fit the model ({len(problems)}): {'; '.join(sorted(problems)[:8])}. "
            "Return those that it does not load as they were given"
        )


def _check_fits(found: Mapping[str, Any], expected: Mapping[str, Any], *, fill_missing: str, source: str) -> None:
    may_miss = re.compile(fill_missing)
    problems = []
    for path, leaf in expected.items():
        if path not in found:
            if not may_miss.fullmatch(path):
                problems.append(f"'{path}' is missing")
        elif tuple(found[path].shape) != tuple(leaf.shape):
            problems.append(f"'{path}': found {tuple(found[path].shape)}, expected {tuple(leaf.shape)}")
        elif not jnp.issubdtype(found[path].dtype, jnp.floating):
            problems.append(f"'{path}': found {found[path].dtype}, expected floating-point numbers")
    if problems:
        raise errors.DataError(
            f"{source}: does not fit the model ({len(problems)} parameters): {'; '.join(problems[:8])}. "
            "Choose the config that the checkpoint was made with"
        )


def _stored_shapes(folder: pathlib.Path, source: str) -> dict[str, Any]:
    """Return the metadata of each parameter of a `params` folder, by path.

    Each entry has a `shape`.
    """
    import orbax.checkpoint as ocp  # takes 0.3 s, and statistics or --help load no weights

    with (
        storage_errors.explained(lambda reason: f"{source}: not a checkpoint, or damaged ({reason})"),
        ocp.PyTreeCheckpointer() as checkpointer,
    ):
        metadata = checkpointer.metadata(folder)
    # Newer versions of orbax wrap the tree in the metadata of a step.
    tree = getattr(metadata, "item_metadata", metadata)
    if tree is None or "params" not in tree:
        raise errors.DataError(f"{source}: holds no parameters, expected the 'params' folder of a step")
    flat = flax.traverse_util.flatten_dict(tree["params"], sep="/")
    # Paths written from an nnx state have an additional last key.
    return {path.removesuffix("/value"): leaf for path, leaf in flat.items()}
