"""Damaged files: recordings, datasets, statistics, checkpoints and settings.

A damaged file must be refused in one line, or read as if it were whole. Where a format has no checksum, damage may make
another valid file of it. Then the product must read exactly what a reader of that format reads, and the attack counts
as undetectable.
"""

from collections.abc import Callable
import json
from pathlib import Path
import random
import shutil
from typing import Any

from benchmarks.torture import content
from benchmarks.torture import damage
from benchmarks.torture import material
from benchmarks.torture import settings_values
from benchmarks.torture.attack import Outcome
from benchmarks.torture.attack import Verdict
from benchmarks.torture.forked import Forked
from benchmarks.torture.processes import ROOT
from benchmarks.torture.processes import Ended

_CHECKPOINT = ROOT / "tests/golden/pi0_checkpoint/7"
_PROBES = "benchmarks.torture.probes"
_DATASETS = ("image", "video")


class Files:
    """Damages one file at a time and lets the product read it."""

    name = "files"
    share = 2.0

    def __init__(self) -> None:
        self._targets: list[tuple[str, Callable[[random.Random, Path], Outcome]]] = [
            ("recording", self._recording),
            ("dataset", self._dataset),
            ("recording", self._recording),
            ("dataset", self._dataset),
            ("statistics", self._statistics),
            ("checkpoint", self._checkpoint),
            ("site.toml", self._site),
            ("site.toml", self._site),
        ]
        self._truth: dict[str, Any] = {}

    def open(self, folder: Path, seconds: float) -> None:
        """Make one whole file of each sort, and read it."""
        del seconds
        self._base = folder
        self._forked = Forked(folder)
        # Recordings in every form, and a dataset of each mode.
        for form in material.FORMS:
            material.write_recordings(folder / form, form=form)
            self._truth[form] = self._read("recordings", folder / form, folder)
        for mode in _DATASETS:
            flags = ["--mode", mode, *(["--video-codec", "h264"] if mode == "video" else [])]
            ended = self._convert(folder / "jpeg_padded", folder / mode, folder, *flags)
            if ended.code:
                raise RuntimeError(f"the whole recordings were not converted: {ended.tail}")
            self._truth[mode] = self._read("loaded", folder / mode / "set", folder)
        if self._truth["image"] != self._truth["jpeg_padded"]:
            raise RuntimeError("the whole dataset differs from its recordings")
        # A checkpoint, and the statistics in it.
        shutil.copytree(_CHECKPOINT, folder / "checkpoint/7")
        self._truth["checkpoint"] = self._read("checkpoint", folder / "checkpoint/7", folder)
        (stats,) = (folder / "checkpoint/7").rglob("norm_stats.json")
        shutil.copytree(stats.parent, folder / "statistics")
        self._truth["statistics"] = self._read("statistics", folder / "statistics", folder)

    def attack(self, rng: random.Random, index: int, folder: Path) -> Outcome:
        """Damage one file and let the product read it."""
        return self._targets[index % len(self._targets)][1](rng, folder)

    def notes(self) -> list[str]:
        """Return nothing."""
        return []

    def close(self) -> None:
        """End the process that runs commands."""
        if hasattr(self, "_forked"):
            self._forked.close()

    # ---- one attack of each sort -------------------------------------------------------------------------------------

    def _recording(self, rng: random.Random, folder: Path) -> Outcome:
        form = rng.choice(material.FORMS)
        shutil.copytree(self._base / form, folder / "recordings")
        done = f"{form}: " + _damage(folder / "recordings", rng)
        if rng.random() < 0.05:
            return self._inspected("recording", done, folder / "recordings", folder)
        ended = self._convert(folder / "recordings", folder / "out", folder)
        if ended.code:
            if (folder / "out/set").exists():
                return Outcome("recording", "lost", "a refused conversion left a dataset", f"{done}. {ended.tail}")
            return _refused("recording", done, ended)
        return self._compare("recording", done, form, folder, ("dataset", "out/set"), ("recordings", "recordings"))

    def _dataset(self, rng: random.Random, folder: Path) -> Outcome:
        mode = rng.choice(_DATASETS)
        shutil.copytree(self._base / mode / "set", folder / "set")
        done = f"{mode}: " + _damage(folder / "set", rng)
        if rng.random() < 0.05:
            return self._inspected("dataset", done, folder / "set", folder)
        return self._compare("dataset", done, mode, folder, ("loaded", "set"), ("dataset", "set"))

    def _statistics(self, rng: random.Random, folder: Path) -> Outcome:
        shutil.copytree(self._base / "statistics", folder / "statistics")
        done = _damage(folder / "statistics", rng, "norm_stats.json")
        ended = self._probe("statistics", folder / "statistics", folder)
        if ended.code != 0:
            return _refused("statistics", done, ended)
        found = json.loads(ended.out)
        if found == self._truth["statistics"]:
            return Outcome("statistics", "survived", "same")
        if "changed after it was computed" in ended.err:
            return Outcome("statistics", "survived", "warned")
        stored = json.loads((folder / "statistics/norm_stats.json").read_text())["norm_stats"]
        same = all(stored[key][name] == values for key, kind in found.items() for name, values in kind.items())
        return _changed("statistics", done, is_what_the_file_says=same)

    def _checkpoint(self, rng: random.Random, folder: Path) -> Outcome:
        shutil.copytree(self._base / "checkpoint/7", folder / "7")
        if rng.random() < 0.3:
            victim = rng.choice(sorted(p for p in (folder / "7/params").rglob("*") if p.is_file()))
            victim.unlink()
            done = f"removed {victim.relative_to(folder)}"
        else:
            done = _damage(folder / "7/params", rng)
        ended = self._probe("checkpoint", folder / "7", folder)
        if ended.code != 0:
            return _refused("checkpoint", done, ended)
        found, truth = json.loads(ended.out), self._truth["checkpoint"]
        if found == truth:
            return Outcome("checkpoint", "survived", "same")
        # The chunks of arrays are compressed without a checksum. The names and shapes around them are checked.
        return _changed("checkpoint", done, is_what_the_file_says=found.keys() == truth.keys() and "/d/" in done)

    def _site(self, rng: random.Random, folder: Path) -> Outcome:
        path = folder / "site.toml"
        done = settings_values.write(path, rng)
        ended = self._probe("site", path, folder)
        if ended.code != 0:
            return _refused("site.toml", done, ended)
        problems = settings_values.problems(path, json.loads(ended.out))
        if problems:
            return Outcome("site.toml", "lost", "accepted", "; ".join(problems))
        return Outcome("site.toml", "survived", "right values")

    # ---- running and judging -----------------------------------------------------------------------------------------

    def _convert(self, raw: Path, out: Path, folder: Path, *flags: str) -> Ended:
        common = ["convert", "--raw-dir", raw, "--root", out, "--repo-id", "set", "--workers", "1"]
        return self._forked.run("realman", [*common, *flags], folder)

    def _probe(self, what: str, path: Path, folder: Path) -> Ended:
        return self._forked.run(_PROBES, [what, path], folder)

    def _read(self, what: str, path: Path, folder: Path) -> Any:
        ended = self._probe(what, path, folder)
        if ended.code:
            raise RuntimeError(f"{what} {path}: {ended.tail}")
        return json.loads(ended.out)

    def _inspected(self, target: str, done: str, path: Path, folder: Path) -> Outcome:
        """Ask for a report, which must come despite the damage."""
        flags = ["inspect", "--data", path, "--out-dir", folder / "report"]
        ended = self._forked.run("realman", flags, folder)
        if ended.code in (0, 1, 2) and "Traceback" not in ended.err:
            return Outcome(target, "survived", "inspected")
        return Outcome(target, "lost", "inspection broke", f"{done}. {ended.tail}")

    def _compare(
        self, target: str, done: str, truth: str, folder: Path, ours: tuple[str, str], theirs: tuple[str, str]
    ) -> Outcome:
        """Compare with the whole file, else with what another reader finds."""
        ended = self._probe(ours[0], folder / ours[1], folder)
        if ended.code != 0:
            return _refused(target, done, ended)
        found = json.loads(ended.out)
        if found == self._truth[truth]:
            return Outcome(target, "survived", "same")
        other = self._probe(theirs[0], folder / theirs[1], folder)
        expected = json.loads(other.out) if other.code == 0 else None
        keys = content.NUMBERS if expected and found["tasks"] == self._truth[truth]["tasks"] else found
        same = expected is not None and all(found[key] == expected[key] for key in keys)
        return _changed(target, f"{done}. Another reader: {other.tail if other.code else 'read it'}", same)


def _damage(folder: Path, rng: random.Random, name: str | None = None) -> str:
    """Damage one file below a folder and return what was done."""
    paths = sorted(path for path in folder.rglob(name or "*") if path.is_file() and path.stat().st_size)
    path = rng.choice(paths)
    if name is None and len(paths) > 1 and rng.random() < 0.1:
        other = rng.choice([p for p in paths if p != path])
        ours, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(ours)
        return f"exchanged {path.relative_to(folder)} and {other.relative_to(folder)}"
    kind = rng.choice(sorted(damage.ALL))
    path.write_bytes(damage.ALL[kind](path.read_bytes(), rng))
    return f"{kind} {path.relative_to(folder)}"


def _refused(target: str, done: str, ended: Ended) -> Outcome:
    if ended.is_refusal:
        return Outcome(target, "survived", "refused")
    how = "hung" if ended.code is None else "crashed" if ended.code < 0 else "not one line"
    return Outcome(target, "lost", how, f"{done}. {ended.tail}")


def _changed(target: str, done: str, is_what_the_file_says: bool) -> Outcome:  # noqa: FBT001
    verdict: Verdict = "undetectable" if is_what_the_file_says else "lost"
    return Outcome(target, verdict, "no checksum" if is_what_the_file_says else "other values", done)
