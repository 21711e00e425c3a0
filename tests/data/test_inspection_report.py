"""The inspection from the command line: recordings and datasets in, one self-contained page, JSON, summary and exit code out."""

import dataclasses
from html.parser import HTMLParser
import io
import json
from pathlib import Path
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from realman import spec
from realman.data import convert
from realman.data.dataset.from_raw import Mode
from realman.data.inspection import command
from realman.data.inspection.decode import SMALL_HEIGHT_PX
from realman.data.inspection.decode import decode_small
from realman.data.inspection.diagnosis import diagnose
from realman.data.inspection.inspected_data import open_data
from realman.data.inspection.measure import measure_all
from realman.data.inspection.report import render
from realman.data.inspection.survey import Survey
from realman.data.inspection.terminal import print_summary
from realman.data.raw import RawOptions
from realman.errors import DatasetError
from realman.errors import EpisodeError

NUM_FRAMES = 60


@pytest.fixture(scope="module")
def recordings(write_recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings whose actions are followed, and whose images all change."""
    folder = tmp_path_factory.mktemp("recordings") / "stack <cups>"
    time_s = np.arange(NUM_FRAMES + 2)[:, None] / 50
    for seed in range(2):
        motion = 0.5 + 0.3 * np.sin(4 * time_s + 0.3 * np.arange(14) + seed)
        write_recording(
            folder / f"episode_{seed}.hdf5",
            num_frames=NUM_FRAMES,
            state=motion[:-2],
            action=motion[2:],
            optional=False,
            seed=seed,
        )
    return folder


def _convert(recordings: Path, root: Path, mode: Mode) -> Path:
    args = convert.Args(raw_dir=recordings, repo_id="a/b", root=root, mode=mode, video_codec="h264", workers=1)
    assert convert.main(args) == 0
    return root / "a/b"


@pytest.fixture(scope="module")
def dataset(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _convert(recordings, tmp_path_factory.mktemp("datasets"), "image")


def _survey(data: Path) -> Survey:
    data = open_data(data, RawOptions())
    return Survey(data, spec.CAMERAS, "unknown", None, tuple(measure_all(data, spec.CAMERAS, workers=1)))


class _Page(HTMLParser):
    """Counts open elements, and collects what a browser would have to fetch."""

    VOID = ("meta", "img", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.num_images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_images += tag == "img"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(recordings: Path, tmp_path: Path, capsys) -> None:
    assert command.main(command.Args(data=recordings, out_dir=tmp_path, workers=1)) == 0
    page = tmp_path / command.REPORT
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    parser = _Page()
    parser.feed(text)
    assert parser.open == []
    # Five moments of four cameras of both episodes.
    assert parser.num_images == 5 * 4 * 2
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in parser.links)
    assert not re.search(r"@import|url\((?!#)|<script", text)
    assert "stack &lt;cups&gt;" in text
    assert "stack <cups>" not in text
    assert all(name in text for name in spec.CAMERAS)


def test_colors_of_charts_follow_the_page(recordings: Path) -> None:
    survey = _survey(recordings)
    page = render(survey, diagnose(survey))
    chart = page[page.index("<svg") : page.rindex("</svg>")]
    assert "var(--state)" in chart
    assert "var(--action)" in chart
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", chart)


def test_the_json_holds_every_dimension_camera_and_episode(recordings: Path, tmp_path: Path) -> None:
    command.main(command.Args(data=recordings, out_dir=tmp_path, workers=1))
    numbers = json.loads((tmp_path / command.NUMBERS).read_text())
    assert numbers["verdict"].startswith("Fit for training")
    assert [d["name"] for d in numbers["dimensions"]] == list(spec.DIM_NAMES)
    assert set(numbers["cameras"]) == set(spec.CAMERAS)
    assert [(e["name"], e["num_frames"], e["lag_s"]) for e in numbers["episodes"]] == [
        ("episode_0.hdf5", NUM_FRAMES, 0.04),
        ("episode_1.hdf5", NUM_FRAMES, 0.04),
    ]


def test_errors_give_exit_code_one_and_the_summary_names_the_remedy(recordings: Path, tmp_path: Path, capsys) -> None:
    args = command.Args(data=recordings, out_dir=tmp_path, gripper_range="0:0.1", workers=1)
    assert command.main(args) == 1
    assert "--gripper-range" in (tmp_path / command.REPORT).read_text()
    assert "Not fit for training: 1 error" in capsys.readouterr().err


def test_a_folder_of_nothing_but_damage_still_gets_a_report(tmp_path: Path) -> None:
    (tmp_path / "episode_0.hdf5").write_bytes(b"nothing")
    assert command.main(command.Args(data=tmp_path, out_dir=tmp_path / "out", workers=1)) == 1
    assert "is not an HDF5 file" in (tmp_path / "out" / command.REPORT).read_text()
    assert json.loads((tmp_path / "out" / command.NUMBERS).read_text())["dimensions"] == []


def test_a_single_recording_can_be_inspected(recordings: Path) -> None:
    assert [e.num_frames for e in _survey(recordings / "episode_1.hdf5").readable] == [NUM_FRAMES]


def test_the_terminal_shows_verdict_findings_and_remedies(recordings: Path) -> None:
    survey = _survey(recordings)
    findings = diagnose(survey)
    console = Console(file=io.StringIO(), width=200)
    print_summary(survey, findings, console)
    text = console.file.getvalue()
    assert text.startswith("Fit for training")
    assert all(f.found in text and f"-> {f.remedy}" in text for f in findings)


@pytest.mark.parametrize("mode", ["image", "video"])
def test_a_dataset_is_judged_as_its_recordings_are(mode: Mode, recordings: Path, dataset: Path, tmp_path: Path) -> None:
    converted = _survey(dataset if mode == "image" else _convert(recordings, tmp_path, mode))
    raw = _survey(recordings)
    assert [(f.grade, f.check) for f in diagnose(converted)] == [(f.grade, f.check) for f in diagnose(raw)]
    for ours, theirs in zip(converted.motions.values(), raw.motions.values(), strict=True):
        np.testing.assert_array_equal(ours.state, theirs.state)
        assert ours.lag_s == theirs.lag_s
    for ours, theirs in zip(converted.images.values(), raw.images.values(), strict=True):
        assert ours.frames.tolist() == theirs.frames.tolist()
        # Recorded JPEGs are copied, so single images give the same numbers; a video is close.
        np.testing.assert_allclose(
            ours.cameras["cam_high"].brightness, theirs.cameras["cam_high"].brightness, atol=0 if mode == "image" else 3
        )


def _changed(dataset: Path, folder: Path, **info: object) -> Path:
    copy = folder / "changed"
    shutil.copytree(dataset, copy)
    path = copy / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **info}))
    return copy


def test_a_dataset_of_version_2_0_is_read(dataset: Path, tmp_path: Path) -> None:
    old = _changed(dataset, tmp_path, codebase_version="v2.0")
    (old / "meta/episodes_stats.jsonl").unlink()
    assert len(_survey(old).readable) == 2


def test_a_dataset_of_another_version_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"v3\.0.*expected v2\.0 or v2\.1"):
        open_data(_changed(dataset, tmp_path, codebase_version="v3.0"), RawOptions())


def test_reading_options_are_refused_for_a_dataset(dataset: Path) -> None:
    with pytest.raises(EpisodeError, match="options for recordings, but this is a LeRobot dataset"):
        open_data(dataset, RawOptions(angle_unit="deg"))


def test_a_dataset_without_grippers_is_refused(dataset: Path, tmp_path: Path) -> None:
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features["action"]["shape"] = [12]
    with pytest.raises(DatasetError, match=r"'action' has shape \[12\], expected \[14\]"):
        open_data(_changed(dataset, tmp_path, features=features), RawOptions())


def test_a_dataset_with_the_left_arm_first_is_read_right_first_and_needs_the_training_option(
    dataset: Path, tmp_path: Path
) -> None:
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    names = list(spec.DIM_NAMES[7:] + spec.DIM_NAMES[:7])
    for key in (spec.STATE_KEY, spec.ACTION_KEY):
        features[key]["names"] = {"motors": names}
    survey, original = _survey(_changed(dataset, tmp_path, features=features)), _survey(dataset)
    (finding,) = (f for f in diagnose(survey) if f.grade != "note")
    assert finding.check == "arm-order"
    assert "--data.arm-order left_right" in finding.remedy
    np.testing.assert_array_equal(survey.state_rows[:, :7], original.state_rows[:, 7:])


def _edit_table(dataset: Path, column: str, values: np.ndarray) -> None:
    path = dataset / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, table.schema.field(column).type)), path)


def test_timestamps_that_do_not_fit_the_rate_are_found(dataset: Path, tmp_path: Path) -> None:
    changed = _changed(dataset, tmp_path)
    _edit_table(changed, "timestamp", np.arange(NUM_FRAMES) / 49)
    (finding,) = (f for f in diagnose(_survey(changed)) if f.grade != "note")
    assert (finding.grade, finding.check, finding.episodes) == ("error", "timestamps", ("episode_000001",))


def test_damaged_and_missing_tables_are_named(dataset: Path, tmp_path: Path) -> None:
    changed = _changed(dataset, tmp_path)
    tables = sorted(changed.glob("data/chunk-000/*.parquet"))
    tables[0].unlink()
    tables[1].write_bytes(tables[1].read_bytes()[:2000])
    survey = _survey(changed)
    assert [f.check for f in diagnose(survey)] == ["unreadable", "unreadable"]
    assert all(path.name in finding.found for path, finding in zip(tables, diagnose(survey), strict=True))


@pytest.mark.slow  # starts two processes, a few seconds each on a busy machine
def test_measures_do_not_depend_on_the_number_of_workers(recordings: Path) -> None:
    data = open_data(recordings, RawOptions())
    one, two = (measure_all(data, spec.CAMERAS, workers) for workers in (1, 2))
    survey = Survey(data, spec.CAMERAS, "unknown", None, tuple(one))
    other = dataclasses.replace(survey, episodes=tuple(two))
    assert render(survey, diagnose(survey)) == render(other, diagnose(other))


def test_large_jpegs_are_decoded_at_a_reduced_size_and_small_ones_whole() -> None:
    cv2 = pytest.importorskip("cv2")
    for height, expected in ((1080, 270), (480, SMALL_HEIGHT_PX), (240, 240), (48, 48)):
        red = np.full((height, height, 3), (0, 0, 255), np.uint8)
        image = decode_small(cv2.imencode(".jpg", red)[1].tobytes())
        assert image is not None
        assert image.shape[0] == expected
        assert image[0, 0, 0] > 200 > image[0, 0, 2]
    assert decode_small(b"\xff\xd8 no picture \xff\xd9") is None
