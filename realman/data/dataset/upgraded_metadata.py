"""Carry the metadata of an existing dataset over to its v2.1 form.

Lines belong to their index, and unknown keys, lines and files are kept.
"""

from collections.abc import Collection, Sequence
import os
from pathlib import Path
from typing import Any

from realman.data.dataset import existing
from realman.data.dataset import layout
from realman.data.dataset.existing import ExistingDataset
from realman.data.dataset.staging import EpisodeRecord
from realman.errors import DatasetError

_OLD_STATS = Path("meta/stats.json")
"""Statistics of all episodes, as v2.0 had them. Those per episode replace them."""

_WRITTEN = frozenset({layout.INFO, layout.TASKS, layout.EPISODES, layout.EPISODES_STATS, layout.SOURCES})
_CACHES = frozenset({".cache", ".frames"})
_EPISODES = frozenset({"data", "videos"})
"""Folders of tables and videos. Episodes that the dataset does not list are left out."""


def lines_by_episode(path: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of a file by their episode.

    There are none without the file.
    """
    lines = layout.read_json_lines(path) if path.is_file() else []
    indices = [existing.whole(line.get("episode_index")) for line in lines]
    return {index: line for index, line in zip(indices, lines, strict=True) if isinstance(index, int)}


def other_files(dataset: ExistingDataset, *, without: Path | None = None) -> list[Path]:
    """List the files that are neither episodes nor rewritten.

    Paths are relative to the dataset. Hidden folders are left out. They hold caches.

    Args:
        dataset: The existing dataset.
        without: A folder that is not part of it, even if it is inside.
    """
    found, root = [], dataset.root
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not (here == Path() and name in _EPISODES)
            and not (without is not None and without.absolute().is_relative_to(Path(folder, name).absolute()))
        )
        found += [here / name for name in sorted(names) if (Path(folder) / name).is_file()]
    replaced = _WRITTEN | ({_OLD_STATS} if dataset.info["codebase_version"] == "v2.0" else set())
    return [path for path in found if path not in replaced]


def refuse_losses(dataset: ExistingDataset, used: Collection[Path]) -> None:
    """Refuse an upgrade in place that would delete something.

    What an upgrade leaves behind elsewhere would be gone here. Caches may go.

    Args:
        dataset: The existing dataset.
        used: Tables and videos of its episodes, relative to it.

    Raises:
        DatasetError: There are hidden folders, or tables and videos of episodes that the dataset does not list.
    """
    root, lost = dataset.root, list[Path]()
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        lost += [here / name for name in folders if name.startswith(".") and name not in _CACHES]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if here.parts[:1] and here.parts[0] in _EPISODES:
            lost += [here / name for name in names if here / name not in used]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise DatasetError(
            f"{root}: '{min(lost)}'{more} would be deleted by an upgrade in place, expected only files of the dataset. "
            "Choose another place with --root or --repo-id"
        )


def write(dataset: ExistingDataset, root: Path, robot_type: str, records: Sequence[EpisodeRecord]) -> None:
    """Write the files of `meta` that the format knows.

    Args:
        dataset: The existing dataset.
        root: The new one.
        robot_type: Name of the robot.
        records: What was built of each episode.
    """
    by_index = {record.episode_index: record for record in records}
    kept_stats = lines_by_episode(dataset.root / layout.EPISODES_STATS)
    write_lines = layout.write_json_lines
    write_lines(root / layout.TASKS, dataset.tasks)
    write_lines(
        root / layout.EPISODES,
        ({**line, "tasks": line.get("tasks") or []} for line in dataset.episodes),
    )
    write_lines(
        root / layout.EPISODES_STATS,
        ({**kept_stats.get(i, {}), "episode_index": i, "stats": r.stats} for i, r in sorted(by_index.items())),
    )
    write_lines(root / layout.SOURCES, _sources(dataset, by_index))
    layout.write_json(root / layout.INFO, _info(dataset, robot_type, records))


def _sources(dataset: ExistingDataset, records: dict[int, EpisodeRecord]) -> list[dict[str, Any]]:
    """Return what each episode was made from.

    It is a recording if the dataset knows it, and the old table otherwise.
    """
    known = lines_by_episode(dataset.root / layout.SOURCES)
    return [known.get(i) or {"episode_index": i, "source": r.source} for i, r in sorted(records.items())]


def _info(dataset: ExistingDataset, robot_type: str, records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    made = layout.make_info(
        dataset.features,
        robot_type=robot_type,
        fps=dataset.fps,
        num_frames=[record.num_frames for record in records],
        num_tasks=len(dataset.tasks),
    )
    # Chunks follow the index, which may have holes.
    made["total_chunks"] = max(record.episode_index for record in records) // layout.CHUNK_SIZE + 1
    # Splits are the user's, everything else that the format knows is counted anew.
    kept = {"splits": dataset.info["splits"]} if dataset.info.get("splits") else {}
    return {**made, **{key: value for key, value in dataset.info.items() if key not in made}, **kept}
