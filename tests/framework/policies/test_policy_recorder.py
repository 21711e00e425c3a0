"""What a recorded policy leaves on disk, and that it can be read back."""

import contextlib
import json
import logging
import pathlib
import threading

import cv2
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
