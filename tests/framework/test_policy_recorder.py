"""What a recorded policy leaves on disk."""

import logging
import pathlib

import numpy as np
import pytest

from openpi.policies import policy as _policy
from openpi_client import base_policy


class Doubler(base_policy.BasePolicy):
    metadata = {"robot": "test"}  # noqa: RUF012 - read only

    def infer(self, obs, *, noise=None):
        return {"actions": 2 * obs["state"], "noise": noise, "policy_timing": {"infer_ms": 1.5}}


def _files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_inputs_and_outputs_are_readable_without_pickle(tmp_path):
    recorder = _policy.PolicyRecorder(Doubler(), tmp_path / "records")
    obs = {"state": np.arange(3.0), "images": {"cam": np.ones((2, 2, 3), np.uint8)}, "prompt": "wave"}
    result = recorder.infer(obs)
    np.testing.assert_array_equal(result["actions"], [0.0, 2.0, 4.0])
    with np.load(tmp_path / "records" / "step_0.npz", allow_pickle=False) as record:
        assert sorted(record) == [
            "inputs/images/cam",
            "inputs/prompt",
            "inputs/state",
            "outputs/actions",
            "outputs/policy_timing/infer_ms",
        ]
        np.testing.assert_array_equal(record["outputs/actions"], [0.0, 2.0, 4.0])
        assert record["inputs/images/cam"].dtype == np.uint8
        assert str(record["inputs/prompt"]) == "wave"


def test_numbers_go_on_after_a_restart(tmp_path):
    for _ in range(2):
        recorder = _policy.PolicyRecorder(Doubler(), tmp_path)
        recorder.infer({"state": np.zeros(1)})
        recorder.infer({"state": np.zeros(1)})
    assert _files(tmp_path) == ["step_0.npz", "step_1.npz", "step_2.npz", "step_3.npz"]


def test_the_oldest_records_make_place(tmp_path):
    recorder = _policy.PolicyRecorder(Doubler(), tmp_path, max_steps=2)
    for value in range(12):
        recorder.infer({"state": np.array([value])})
    assert _files(tmp_path) == ["step_10.npz", "step_11.npz"]
    with np.load(tmp_path / "step_11.npz") as record:
        assert record["inputs/state"] == 11


def test_nothing_is_written_while_the_recorder_pauses(tmp_path):
    recorder = _policy.PolicyRecorder(Doubler(), tmp_path)
    recorder.is_recording = False
    recorder.infer({"state": np.zeros(1)})
    assert _files(tmp_path) == []


def test_a_full_disk_ends_the_recording_and_not_the_inference(tmp_path, monkeypatch, caplog):
    recorder = _policy.PolicyRecorder(Doubler(), tmp_path)

    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert recorder.infer({"state": np.ones(1)})["actions"] == [2.0]
    assert len(caplog.records) == 1


def test_metadata_and_keyword_arguments_pass_through(tmp_path):
    recorder = _policy.PolicyRecorder(Doubler(), tmp_path)
    assert recorder.metadata == {"robot": "test"}
    assert recorder.infer({"state": np.zeros(1)}, noise="n")["noise"] == "n"


def test_objects_are_recorded_as_text(tmp_path):
    recorder = _policy.PolicyRecorder(Doubler(), tmp_path)
    recorder.infer({"state": np.zeros(1), "odd": [object, "x"]})
    with np.load(tmp_path / "step_0.npz", allow_pickle=False) as record:
        assert "object" in str(record["inputs/odd"])


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        _policy.PolicyRecorder(Doubler(), tmp_path, max_steps=0)
