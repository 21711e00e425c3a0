"""The parts of the policy server on their own: queue, batches, access, messages."""

import base64
import threading

import numpy as np
import pytest

from openpi.serving import access
from openpi.serving import contract_metadata
from openpi.serving import metrics
from openpi.serving import request_errors
from openpi.serving import requests
from openpi.serving.fair_queue import FairQueue
from openpi.serving.inference_worker import InferenceWorker
from openpi.serving.observation_contract import ObservationContract
from openpi.serving.request_errors import OverloadedError
from openpi.serving.request_errors import TooLateError
from openpi.shared.errors import DataError
from openpi.shared.errors import MissingFileError
from openpi.shared.errors import UserError
from openpi_client import base_policy
from openpi_client import image_tools
from openpi_client import msgpack_numpy
from openpi_client import protocol

WAIT_S = 20.0
KEY = "0123456789abcdef"


class BatchDoubler(base_policy.BasePolicy):
    """Records how it was asked. Its first inference waits until the test opens the gate."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Event()
        self.gate = threading.Event()

    def infer(self, obs):
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        self.batches.append([obs["n"]])
        return self._answer(obs)

    def infer_batch(self, observations):
        self.batches.append([obs["n"] for obs in observations])
        return [self._answer(obs) for obs in observations]

    def _answer(self, obs):
        if obs["n"] < 0:
            raise ValueError("negative")
        return {"actions": 2 * obs["n"]}


@pytest.fixture
def working():
    """Start workers that are stopped at the end of the test."""
    workers = []

    def start(policy, *, max_batch=1, example=None):
        worker = InferenceWorker(policy, max_batch=max_batch)
        worker.warm = worker.start(example)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        assert worker.stop(WAIT_S)


def test_clients_take_turns_and_each_keeps_its_order():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.put(item[0], item)
    assert len(queue) == 6
    assert [queue.take() for _ in range(2)] == ["a1", "b1"]
    queue.put("b", "b2")
    assert queue.take_waiting(10) == ["c1", "a2", "b2", "c2", "a3"]
    queue.close()
    assert queue.take() is None


def test_requests_that_wait_together_are_asked_together_and_answered_each_its_own(working):
    policy = BatchDoubler()
    worker = working(policy, max_batch=3)
    first = worker.submit({"n": 0}, client="a")
    assert policy.entered.wait(WAIT_S)
    rest = [worker.submit({"n": n}, client=n) for n in range(1, 6)]
    policy.gate.set()
    assert [job.result(WAIT_S).result["actions"] for job in [first, *rest]] == [0, 2, 4, 6, 8, 10]
    assert policy.batches == [[0], [1, 2, 3], [4, 5]]
    assert rest[0].result().batch_size == 3


def test_one_bad_observation_does_not_fail_those_it_waited_with(working):
    policy = BatchDoubler()
    worker = working(policy, max_batch=4)
    worker.submit({"n": 0})
    assert policy.entered.wait(WAIT_S)
    jobs = [worker.submit({"n": n}, client=n) for n in (1, -1, 2)]
    policy.gate.set()
    assert jobs[0].result(WAIT_S).result["actions"] == 2
    with pytest.raises(ValueError, match="negative"):
        jobs[1].result(WAIT_S)
    assert jobs[2].result(WAIT_S).result["actions"] == 4


def test_the_warm_up_tries_every_size_of_batch(working):
    policy = BatchDoubler()
    policy.gate.set()
    working(policy, max_batch=6, example={"n": 7}).warm.result(WAIT_S)
    assert [len(batch) for batch in policy.batches] == [1, 2, 4, 6]


def test_a_policy_without_batches_is_not_asked_for_them():
    class Single(base_policy.BasePolicy):
        def infer(self, obs):
            return {}

    with pytest.raises(ValueError, match="infer_batch"):
        InferenceWorker(Single(), max_batch=2)


def test_too_many_waiting_requests_are_refused(working):
    policy = BatchDoubler()
    worker = working(policy)
    worker.submit({"n": 0})
    assert policy.entered.wait(WAIT_S)
    for n in range(64):
        worker.submit({"n": n}, client=n % 3)
    with pytest.raises(OverloadedError, match="64 requests are waiting"):
        worker.submit({"n": 1})
    policy.gate.set()


def test_an_inference_does_not_begin_after_its_deadline(working):
    policy = BatchDoubler()
    worker = working(policy)
    policy.gate.set()
    late = worker.submit({"n": 1}, deadline_s=0.0)
    assert worker.submit({"n": 2}).result(WAIT_S).result["actions"] == 4
    assert late.cancelled()
    assert policy.batches == [[2]]


@pytest.mark.parametrize(
    ("header", "is_allowed"),
    [
        (f"Api-Key {KEY}", True),
        (f"api-key  {KEY} ", True),
        ("Basic " + base64.b64encode(f"anyone:{KEY}".encode()).decode(), True),
        ("Basic " + base64.b64encode(f"{KEY}:".encode()).decode(), False),
        ("Basic !!!", False),
        ("Basic /w==", False),
        (f"Api-Key {KEY}x", False),
        (f"Api-Key {KEY[:-1]}", False),
        (f"Bearer {KEY}", False),
        (KEY, False),
        ("Api-Key", False),
        ("Api-Key \udcff", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_known_key_opens(header, is_allowed):
    assert access.KeyCheck(("another key, long", KEY)).allows(header) is is_allowed
    assert access.KeyCheck().allows(header)


def test_a_key_file_holds_one_key_per_line(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(f"# of the lab\n{KEY}\n\n  fedcba9876543210  \n")
    path.chmod(0o600)
    assert access.read_key_file(path) == (KEY, "fedcba9876543210")
    assert not caplog.records
    path.chmod(0o644)
    access.read_key_file(path)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"), [("", "no key"), ("# x\n", "no key"), ("short\n", "too short"), (b"\xff\xfe", "text file")]
)
def test_a_useless_key_file_is_reported_in_one_line(tmp_path, content, message):
    path = tmp_path / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        access.read_key_file(path)


def test_a_missing_key_file_comes_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(UserError, match=r"token_urlsafe.* > .*absent"):
        access.read_key_file(tmp_path / "absent")


def test_useless_tls_files_are_reported_in_one_line(tmp_path):
    assert access.tls_context(None, None) is None
    with pytest.raises(UserError, match="found one of --tls-cert and --tls-key, expected both"):
        access.tls_context(tmp_path / "cert", None)
    with pytest.raises(UserError, match=r"no such file: .*cert, .*key"):
        access.tls_context(tmp_path / "cert", tmp_path / "key")
    for name in ("cert", "key"):
        (tmp_path / name).write_text("not PEM")
    with pytest.raises(UserError, match="cannot be used"):
        access.tls_context(tmp_path / "cert", tmp_path / "key")


@pytest.mark.parametrize(
    ("host", "is_local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_addresses_of_this_machine_only_are_known(host, is_local):
    assert access.is_loopback(host) is is_local


def _read(content, contract=None):
    return requests.read(msgpack_numpy.packb(content), contract or ObservationContract())


def test_jpegs_become_pixels_before_the_policy_sees_them():
    image = np.full((32, 40, 3), (200, 30, 90), np.uint8)
    jpeg = image_tools.encode_jpeg(image, 95)
    found = _read({"images": {"cam": jpeg}, "observation/image": jpeg, "prompt": b"fold", "state": 1.0}).observation
    for pixels in (found["images"]["cam"], found["observation/image"]):
        assert (pixels.shape, pixels.dtype) == ((32, 40, 3), np.uint8)
        assert np.abs(pixels.astype(int) - image).max() < 6
    assert (found["prompt"], found["state"]) == (b"fold", 1.0)


def test_a_damaged_jpeg_is_reported_with_its_camera():
    jpeg = image_tools.encode_jpeg(np.zeros((32, 40, 3), np.uint8), 95)
    with pytest.raises(DataError, match="'images': 'cam': a JPEG of 9 bytes cannot be decoded"):
        _read({"images": {"cam": jpeg[:9]}})


def test_options_of_a_request_are_taken_out_before_the_policy_sees_it():
    request = _read({"state": 1.0, "openpi_request": {"deadline_ms": 250, "replace_older": True}})
    assert request.observation == {"state": 1.0}
    assert (request.deadline_s, request.replaces_older) == (0.25, True)
    assert (_read({}).deadline_s, _read({}).replaces_older) == (None, False)


@pytest.mark.parametrize(
    "options",
    [
        5,
        {"deadline_ms": 0},
        {"deadline_ms": float("nan")},
        {"deadline_ms": True},
        {"deadline_ms": "1"},
        {"replace_older": 1},
        {"priority": 9},
        {b"deadline_ms": 5},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UserError, match=r"^request: "):
        _read({"openpi_request": options})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"prompt": "x" * 2001}, "has 2001 characters, expected at most 2000"),
        ({"prompt": 5}, "'prompt' is a int"),
        ({"prompt": np.array(["a", "b"])}, "'prompt' is a ndarray"),
        ({"state": [[1], [2, 3]]}, "ragged"),
        ({"state": {"x": 1}}, "holds object"),
        ({b"state": 1.0}, "is a bytes, expected a text"),
        ({"images": {b"cam": 1}}, "is a bytes, expected a text"),
        ({"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}}, "found more than 8 levels, expected at most 8"),
        ({"extra": [1.0, {"x": [float("inf")]}]}, r"'extra\[1\]\.x'\[0\] is inf"),
    ],
)
def test_observations_that_no_policy_understands_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        _read(content, ObservationContract(vector_sizes={"state": 2}))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TooLateError("request: late"), "too_late", "request: late"),
        (DataError("observation: 'a/b' is NaN\nmore"), "bad_request", "observation: 'a/b' is NaN"),
        (DataError("missing 'observation/state'"), "bad_request", "missing 'observation/state'"),
        (
            DataError("/home/user/text.model: not a SentencePiece model"),
            "internal",
            "internal error (DataError). See the server's log",
        ),
        (
            UserError("gs://x/y: not in the cache. Put it at '/home/user/.cache/y'"),
            "internal",
            "internal error (UserError). See the server's log",
        ),
        (ValueError("gripper beyond 1"), "bad_request", "gripper beyond 1"),
        (
            ValueError("cannot read /home/user/x"),
            "internal",
            "internal error (ValueError). See the server's log",
        ),
        (
            MissingFileError("/home/x: absent"),
            "internal",
            "internal error (MissingFileError). See the server's log",
        ),
        (RuntimeError(), "internal", "internal error (RuntimeError). See the server's log"),
    ],
)
def test_errors_say_what_clients_can_fix_and_nothing_about_the_machine(error, code, message):
    assert request_errors.describe(error) == (code, message)


def test_prompts_may_be_texts_of_any_kind():
    for prompt in ("wave", b"wave", np.array("wave"), ""):
        _read({"prompt": prompt})


def test_metrics_are_in_the_format_of_prometheus():
    counted = metrics.Metrics()
    counted.num_requests = 2_000_001
    counted.num_errors["bad_request"] += 1
    for total_ms in (0.4, 30.0, 90_000.0):
        counted.count_answer({"total": total_ms, "queue": 0.0})
    text = counted.prometheus({"clients": 3})
    lines = text.splitlines()
    assert text.endswith("\n")
    for line in (
        "openpi_requests_total 2000001",
        'openpi_errors_total{code="bad_request"} 1',
        "# TYPE openpi_clients gauge",
        "openpi_clients 3",
        "# TYPE openpi_phase_seconds histogram",
        'openpi_phase_seconds_bucket{phase="total",le="0.0005"} 1',
        'openpi_phase_seconds_bucket{phase="total",le="0.05"} 2',
        'openpi_phase_seconds_bucket{phase="total",le="60.0"} 2',
        'openpi_phase_seconds_bucket{phase="total",le="+Inf"} 3',
        'openpi_phase_seconds_sum{phase="total"} 90.030400',
        'openpi_phase_seconds_count{phase="total"} 3',
        'openpi_phase_seconds_count{phase="model"} 0',
    ):
        assert line in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_every_feature_that_is_announced_is_one_of_the_protocol():
    announced = contract_metadata.describe_server([protocol.FEATURE_RTC])[protocol.PROTOCOL_KEY]["features"]
    assert set(announced) == {value for name, value in vars(protocol).items() if name.startswith("FEATURE_")}
