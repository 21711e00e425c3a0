"""What a recorded policy leaves on disk, and that it can be read back."""

import contextlib
import json
import logging
import pathlib
import shutil
import threading
import time

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from openpi.policies import policy as _policy
from openpi.policies import recorder as _recorder
from openpi.shared.errors import UserError
from openpi_client import base_policy


class Doubler(base_policy.BasePolicy):
    metadata = {"robot": "test"}  # noqa: RUF012 - read only

    def infer(self, obs, *, noise=None):
        return {"actions": 2 * obs["state"], "noise": noise, "policy_timing": {"infer_ms": 1.5}}

    def infer_batch(self, observations):
        return [self.infer(obs) for obs in observations]


def _recording(directory, **kwargs):
    """A recorder of a doubler that has written everything when its block ends."""
    return contextlib.closing(_policy.PolicyRecorder(Doubler(), directory, **kwargs))


def _state(value):
    return {"state": np.array([float(value)])}


def _files(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != _recorder.METADATA_FILE)


def _image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_what_went_in_and_came_out_is_read_back_exactly(tmp_path):
    obs = {
        "state": np.arange(3.0),
        "images": {"hwc": _image((8, 9, 3)), "chw": _image((3, 8, 9), 1), "depth": np.ones((4, 5), np.uint16)},
        "prompt": "dr\u00fccke",
    }
    with _recording(tmp_path / "records") as recorder:
        result = recorder.infer(obs)
    np.testing.assert_array_equal(result["actions"], [0.0, 2.0, 4.0])
    (path,) = _recorder.find_records(tmp_path / "records")
    record = _recorder.read_record(path)
    assert record.step == 0
    assert record.inputs.keys() == obs.keys()
    assert record.inputs["prompt"] == obs["prompt"]
    for name, image in obs["images"].items():
        assert record.inputs["images"][name].dtype == image.dtype
        np.testing.assert_array_equal(record.inputs["images"][name], image)
    np.testing.assert_array_equal(record.outputs["actions"], [0.0, 2.0, 4.0])
    assert record.outputs["policy_timing"] == {"infer_ms": 1.5}


def test_records_are_plain_arrays_and_images_that_any_viewer_shows_in_their_colors(tmp_path):
    red = np.zeros((8, 9, 3), np.uint8)
    red[..., 0] = 200
    with _recording(tmp_path) as recorder:
        recorder.infer({**_state(1), "images": {"cam": red}})
    with np.load(tmp_path / "step_0.npz", allow_pickle=False) as file:
        image = cv2.imdecode(file["inputs/images/cam.hwc.png"], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(image[0, 0], [0, 0, 200])  # this library's order is blue, green, red


def test_numbers_go_on_after_a_restart(tmp_path):
    for _ in range(2):
        with _recording(tmp_path) as recorder:
            recorder.infer(_state(0))
            recorder.infer(_state(0))
    assert _files(tmp_path) == ["step_0.npz", "step_1.npz", "step_2.npz", "step_3.npz"]


def test_the_oldest_records_make_place(tmp_path):
    with _recording(tmp_path / "one") as recorder:
        recorder.infer(_state(0))
    size = (tmp_path / "one" / "step_0.npz").stat().st_size
    for first in (0, 8):
        with _recording(tmp_path / "many", max_bytes=int(2.5 * size)) as recorder:
            for value in range(first, first + 6):
                recorder.infer(_state(value))
    assert [path.name for path in _recorder.find_records(tmp_path / "many")] == ["step_10.npz", "step_11.npz"]
    assert _recorder.read_record(tmp_path / "many" / "step_11.npz").inputs["state"] == 13


def test_nothing_is_written_while_the_recorder_pauses_or_after_it_closed(tmp_path):
    with _recording(tmp_path) as recorder:
        recorder.is_recording = False
        recorder.infer(_state(0))
    recorder.infer(_state(0))
    recorder.close()
    assert _files(tmp_path) == []


def test_arrays_that_change_after_the_call_are_recorded_as_they_were(tmp_path):
    with _recording(tmp_path) as recorder:
        obs = _state(1)
        result = recorder.infer(obs)
        obs["state"][0] = result["actions"][0] = 99
    record = _recorder.read_record(tmp_path / "step_0.npz")
    assert (record.inputs["state"], record.outputs["actions"]) == (1, 2)


def test_a_batch_leaves_a_record_of_each(tmp_path):
    with _recording(tmp_path) as recorder:
        recorder.infer_batch([_state(1), _state(2)])
    assert [_recorder.read_record(path).outputs["actions"] for path in _recorder.find_records(tmp_path)] == [2, 4]


def test_a_full_disk_ends_the_recording_and_not_the_inference(tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.ERROR), _recording(tmp_path) as recorder:
        monkeypatch.setattr(pathlib.Path, "open", refuse)
        for _ in range(40):
            assert recorder.infer(_state(1))["actions"] == [2.0]
    assert len(caplog.records) == 1


def test_a_slow_disk_loses_records_and_holds_nobody_up(tmp_path, monkeypatch):
    gate, written = threading.Event(), np.savez

    def slow(*args, **kwargs):
        assert gate.wait(20)
        written(*args, **kwargs)

    monkeypatch.setattr(np, "savez", slow)
    with _recording(tmp_path) as recorder:
        for value in range(40):
            recorder.infer(_state(value))
        gate.set()
    assert recorder.num_left_out >= 20
    assert len(_files(tmp_path)) == 40 - recorder.num_left_out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a zip file at all"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "step_0.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"step_0\.npz: not a complete record"):
        _recorder.read_record(tmp_path / "step_0.npz")


def test_metadata_and_keyword_arguments_pass_through(tmp_path):
    with _recording(tmp_path) as recorder:
        assert recorder.metadata == {"robot": "test"}
        assert recorder.infer({"state": np.zeros(1)}, noise="n")["noise"] == "n"
    assert json.loads((tmp_path / _recorder.METADATA_FILE).read_text()) == {"robot": "test"}


def test_objects_are_recorded_as_text(tmp_path):
    with _recording(tmp_path) as recorder:
        recorder.infer({"state": np.zeros(1), "odd": [object, "x"]})
    assert "object" in _recorder.read_record(tmp_path / "step_0.npz").inputs["odd"]


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        _policy.PolicyRecorder(Doubler(), tmp_path, max_bytes=0)


def _read_only(directory):
    (path,) = _recorder.find_records(directory)
    return _recorder.read_record(path).inputs


KEYS = (
    *(
        "observation/state",
        "../../etc/x",
        "..",
        ".",
        "",
        "a\nb\x1b[31m",
        "C:\\x",
        "100%",
        "%2F",
        "cam.hwc.png",
        "\u202ex",
    ),
    *("\u76f8\u673a", "file", "allow_pickle", "a b", "/root", "a//b", "x.npy"),
)


@pytest.mark.parametrize("key", KEYS)
def test_any_key_is_read_back_and_names_no_other_place(tmp_path, key):
    with _recording(tmp_path) as recorder:
        recorder.infer({**_state(7), key: np.arange(3), "nested": {key: {key: "text"}}})
    inputs = _read_only(tmp_path)
    np.testing.assert_array_equal(inputs[key], np.arange(3))
    assert inputs["nested"] == {key: {key: "text"}}
    with np.load(tmp_path / "step_0.npz") as file:
        for name in file.files:
            assert name.isprintable()
            assert not any(part in ("", ".", "..") or "\\" in part or ":" in part for part in name.split("/"))


def test_keys_that_differ_only_in_their_type_or_far_end_keep_their_values(tmp_path):
    long = "k" * 5000
    with _recording(tmp_path) as recorder:
        recorder.infer({**_state(7), 1: 10, "1": 11, long: 12, "k" * 300 + "x": 13, "a/b": 14, "a": {"b": 15}})
    inputs = _read_only(tmp_path)
    assert sorted(value for value in inputs.values() if isinstance(value, int)) == [10, 11, 12, 13, 14]
    assert (inputs["a/b"], inputs["a"]) == (14, {"b": 15})
    assert all(len(key) < 300 for key in inputs)


def test_values_of_every_kind_leave_a_record(tmp_path):
    odd = {
        "ragged": [[1], [2, 3]],
        "texts": ["a", "b"],
        "wide": ["x" * 5000] + [""] * 50_000,
        "bfloat16": np.asarray(jnp.asarray([1.5, 2.5], jnp.bfloat16)),
        "date": np.array(["2026-11-27"], "datetime64[D]"),
        "complex": np.array([1 + 2j]),
        "none": None,
        "big": 2**70,
        "flat": np.zeros((1, 70_000, 3), np.uint8),
        "empty": np.zeros((0, 3, 3), np.uint8),
        "thin": np.zeros((1, 1, 3), np.uint8),
    }
    with _recording(tmp_path) as recorder:
        recorder.infer(_state(1) | odd)
        recorder.infer(_state(2))
    assert recorder.recording == _recorder.RecordingState(num_written=2, num_left_out=0, problem=None)
    inputs = _recorder.read_record(tmp_path / "step_0.npz").inputs
    assert inputs.keys() == {"state", *odd} - {"none"}
    assert inputs["ragged"] == "[[1], [2, 3]]"
    np.testing.assert_array_equal(inputs["texts"], ["a", "b"])
    assert len(inputs["wide"]) == 100_000
    np.testing.assert_array_equal(inputs["bfloat16"], [1.5, 2.5])
    assert inputs["flat"].shape == (1, 70_000, 3)
    assert inputs["big"] == str(2**70)


def test_a_disk_that_has_room_again_is_written_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_recorder, "_RETRY_S", 0.0)
    written, is_full = np.savez, True

    def save(stream, **leaves):
        stream.write(b"half a record")
        if is_full:
            raise OSError(28, "No space left on device")
        stream.seek(0)
        written(stream, **leaves)

    monkeypatch.setattr(np, "savez", save)
    with caplog.at_level(logging.INFO), _recording(tmp_path) as recorder:
        for value in range(3):
            recorder.infer(_state(value))
        _wait_for(lambda: recorder.recording.num_left_out == 3)
        assert "No space left on device" in recorder.recording.problem
        assert _files(tmp_path) == []
        is_full = False
        recorder.infer(_state(3))
    assert _files(tmp_path) == ["step_0.npz"]
    assert _read_only(tmp_path)["state"] == 3
    assert recorder.recording == _recorder.RecordingState(num_written=1, num_left_out=3, problem=None)
    assert sum("was not written" in record.getMessage() for record in caplog.records) == 1
    assert sum("again" in record.getMessage() for record in caplog.records) == 1


def test_a_disk_that_refuses_is_left_alone_for_a_while(tmp_path, monkeypatch):
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError(28, "No space left on device")

    with _recording(tmp_path) as recorder:
        monkeypatch.setattr(np, "savez", refuse)
        for value in range(5):
            recorder.infer(_state(value))
    assert (len(attempts), recorder.recording.num_left_out) == (1, 5)


def test_a_folder_that_cannot_be_is_reported_at_once_and_serving_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_recorder, "_RETRY_S", 0.0)
    (tmp_path / "file").write_text("in the way")
    with _recording(tmp_path / "file") as recorder:
        assert "was not written to" in caplog.text
        assert recorder.recording.problem is not None
        assert recorder.infer(_state(1))["actions"] == 2
        _wait_for(lambda: recorder.recording.num_left_out == 1)
        (tmp_path / "file").unlink()
        recorder.infer(_state(2))
    assert _read_only(tmp_path / "file")["state"] == 2


def test_a_folder_that_was_deleted_is_made_again_and_unfinished_records_go(tmp_path):
    (tmp_path / "step_7.partial").write_bytes(b"cut off")
    with _recording(tmp_path) as recorder:
        recorder.infer(_state(1))
        _wait_for(lambda: recorder.recording.num_written == 1)
        assert _files(tmp_path) == ["step_0.npz"]
        shutil.rmtree(tmp_path)
        recorder.infer(_state(2))
    assert _read_only(tmp_path)["state"] == 2


def test_records_that_would_fill_the_memory_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(_recorder, "_MAX_WAITING_BYTES", 1000)
    with _recording(tmp_path) as recorder:
        recorder.infer({**_state(1), "large": np.zeros(2000, np.uint8)})
        recorder.infer(_state(2))
    assert recorder.num_left_out == 1
    assert _read_only(tmp_path)["state"] == 2


def _wait_for(condition):
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
