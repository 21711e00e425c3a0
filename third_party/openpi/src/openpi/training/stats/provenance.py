"""Describe what statistics were computed from, and compare it with a run."""

from collections.abc import Iterable, Mapping, Sequence
import datetime as dt
import hashlib
import platform
from typing import Any

import numpy as np

from openpi.shared.normalize import Provenance
from openpi.training.configs.data_config import DataConfig
from openpi.training.lerobot.metadata import INDEX_KEYS
from openpi.training.lerobot.metadata import LeRobotMetadata
from openpi.training.samples import datasets
import openpi.transforms as _transforms

_FORMAT = 1
# Stands in for every camera. Robot transforms need images, but the statistics do not depend on them.
_DUMMY_IMAGE = np.zeros((3, 1, 1), np.uint8)
# Rounding between platforms, in the units of the data.
_PROBE_TOLERANCE = 1e-4


def stats_keys(metadata: LeRobotMetadata, used: set[str] | None) -> list[str]:
    """Return the columns that statistics are computed from.

    Args:
        metadata: The dataset.
        used: Keys that the config reads. None means all.
    """
    return [key for key in metadata.number_keys if key not in INDEX_KEYS and (used is None or key in used)]


def stand_ins(metadata: LeRobotMetadata) -> dict[str, Any]:
    """Return values for keys that transforms read and statistics ignore."""
    return stand_ins_for(metadata.camera_keys)


def stand_ins_for(camera_keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of `stand_ins` for known camera keys."""
    return dict.fromkeys(camera_keys, _DUMMY_IMAGE) | dict.fromkeys(INDEX_KEYS, 0) | {"task": "", "prompt": ""}


def dataset_facts(
    repo_id: str, share: float, metadata: LeRobotMetadata, columns: Mapping[str, np.ndarray], keys: Sequence[str]
) -> dict[str, Any]:
    """Describe a dataset by what statistics depend on.

    Images, task texts and the way of storage may change without changing the description.

    Args:
        repo_id: Name of the dataset.
        share: Its share of the samples, 0..1.
        metadata: Its `meta/` folder.
        columns: Its number columns, by key.
        keys: Keys of the columns that count.
    """
    # The hash covers every number, so that any other data is noticed.
    digest = hashlib.sha256()
    digest.update(repr((metadata.fps, [episode.length for episode in metadata.episodes])).encode())
    for key in sorted(keys):
        column = np.ascontiguousarray(columns[key])
        digest.update(f"{key} {column.dtype.str} {column.shape}".encode())
        digest.update(column.data)
    return {
        "repo_id": repo_id,
        "share": share,
        "episodes": len(metadata.episodes),
        "frames": metadata.total_frames,
        "fps": metadata.fps,
        "columns": {key: list(columns[key].shape[1:]) for key in sorted(keys)},
        "sha256": digest.hexdigest(),
    }


def describe(
    data_config: DataConfig, action_horizon: int, facts: Sequence[Mapping[str, Any]], metadata: LeRobotMetadata
) -> dict[str, Any]:
    """Return the part of a provenance that describes data and transforms.

    Args:
        data_config: Names the transforms.
        action_horizon: Length of the windows of actions, frames.
        facts: Facts of each dataset, from `dataset_facts`.
        metadata: Metadata of the first dataset.
    """
    chain = [*data_config.repack_transforms.inputs, *data_config.data_transforms.inputs]
    return {
        "datasets": [dict(of_dataset) for of_dataset in facts],
        "action_horizon": action_horizon,
        "transforms": [repr(transform) for transform in chain],
        "probe": _probe(chain, data_config, metadata),
    }


def _probe(
    chain: Sequence[_transforms.DataTransformFn], data_config: DataConfig, metadata: LeRobotMetadata
) -> dict[str, list]:
    """Return what the transforms make of a frame of distinct numbers.

    It differs where orders, masks or units differ, even under the same names.
    """
    keys = stats_keys(metadata, None)
    shapes = {key: metadata.shape(key) for key in keys}
    frame = probe_frame({key: place for place, key in enumerate(keys)}, shapes, data_config)
    return probe_numbers(chain, stand_ins(metadata) | frame, f"dataset '{metadata.repo_id}'")


def probe_frame(
    places: Mapping[str, int], shapes: Mapping[str, Sequence[int]], data_config: DataConfig
) -> dict[str, Any]:
    """Return a frame of distinct numbers.

    Args:
        places: Place of each column among all columns of its dataset.
        shapes: Shape of each column.
        data_config: Names the columns that become windows, here of two frames.
    """
    sample: dict[str, Any] = {}
    for key, position in places.items():
        size = int(np.prod(shapes[key]))
        sample[key] = (0.1 + 0.8 * (np.arange(size) + 0.1 * position) / size).reshape(shapes[key]).astype(np.float32)
    for key in data_config.action_sequence_keys:
        sample[key] = np.stack([sample[key], sample[key] + 0.05])
    return sample


def probe_numbers(
    chain: Sequence[_transforms.DataTransformFn], frame: Mapping[str, Any], place: str
) -> dict[str, list]:
    """Return what the transforms make of `probe_frame`, as plain numbers."""
    result = datasets.apply(_transforms.compose(chain), dict(frame), place)
    return {key: np.asarray(result[key], np.float64).round(6).tolist() for key in ("state", "actions")}


def make(basis: Mapping[str, Any], **computed: Any) -> Provenance:
    """Return the provenance to store with statistics.

    Args:
        basis: The result of `describe`.
        computed: Further plain values that say how they were computed.
    """
    return {
        "format": _FORMAT,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "of": "all episodes, those kept out for validation included",
        **computed,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        **basis,
    }


def data_differences(found: Provenance, expected: Mapping[str, Any]) -> list[str]:
    """List how the data of statistics differs from that of a run.

    Datasets, shares and action horizon are compared.

    Args:
        found: Provenance of the statistics.
        expected: Description of the run, from `describe`.
    """
    theirs, ours = found["datasets"], expected["datasets"]
    problems = []
    if sorted(facts["sha256"] for facts in theirs) != sorted(facts["sha256"] for facts in ours):
        problems.append(_compare_datasets(theirs, ours))
    elif any(abs(a - b) > 1e-6 for a, b in zip(_shares(theirs), _shares(ours), strict=True)):
        problems.append(f"they weight the datasets {_text(theirs)}, training weights them {_text(ours)}")
    if found["action_horizon"] != expected["action_horizon"]:
        problems.append(
            f"they have an action horizon of {found['action_horizon']} frames, training has {expected['action_horizon']}"
        )
    return problems


def _shares(described: Sequence[Mapping[str, Any]]) -> list[float]:
    return [facts["share"] for facts in sorted(described, key=lambda facts: facts["sha256"])]


def _compare_datasets(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> str:
    if [facts["repo_id"] for facts in theirs] != [facts["repo_id"] for facts in ours]:
        return f"they belong to {_text(theirs)}, training reads {_text(ours)}"
    changes = []
    for before, now in zip(theirs, ours, strict=True):
        named = [
            f"{name} was {before[name]}, now {now[name]}"
            for name in ("fps", "columns", "episodes", "frames")
            if before[name] != now[name]
        ]
        if before["sha256"] != now["sha256"]:
            changes.append(f"'{now['repo_id']}' has changed since ({', '.join(named) or 'other states or actions'})")
    return ", ".join(changes)


def _text(described: Sequence[Mapping[str, Any]]) -> str:
    texts = [f"'{facts['repo_id']}' ({facts['episodes']} episodes, {facts['frames']} frames)" for facts in described]
    if len(texts) > 1:
        texts = [f"{text} with {facts['share']:.1%}" for text, facts in zip(texts, described, strict=True)]
    return " + ".join(texts)


def transform_differences(found: Provenance, expected: Mapping[str, Any]) -> list[str]:
    """List how the transforms of statistics differ from those of a run.

    The list is empty if they act alike.

    Args:
        found: Provenance of the statistics.
        expected: Description of the run, from `describe`.
    """
    if is_same_probe(found["probe"], expected["probe"]):
        return []
    theirs, ours = found["transforms"], expected["transforms"]
    only_theirs = [text for text in theirs if text not in ours] or ["other code under the same names"]
    only_ours = [text for text in ours if text not in theirs] or ["none of these"]
    return [f"they were computed with {' and '.join(only_theirs)}, training has {' and '.join(only_ours)}"]


def is_same_probe(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether two results of `probe_numbers` are equal up to rounding."""
    return all(
        np.shape(found[key]) == np.shape(expected[key])
        and np.allclose(found[key], expected[key], rtol=0, atol=_PROBE_TOLERANCE)
        for key in expected
    )
