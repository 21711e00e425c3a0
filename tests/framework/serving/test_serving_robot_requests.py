"""The policy server in front of the RealMan robot's whole chain: answers to wrong observations, and what survives them."""

import pathlib
import random
import re
import time

import jax.numpy as jnp
import numpy as np
import pytest

from openpi import transforms
from openpi.models import model as _model
from openpi.policies import policy
from openpi.policies import policy_config
from openpi.policies import realman_policy
from openpi.serving import contract_metadata
from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.training import config as _config
from openpi_client import errors
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"
WAIT_S = 60.0


class StillModel(_model.BaseModel):
    """Holds the state."""

    def compute_loss(self, rng, observation, actions, *, train=False):
        raise AssertionError("not part of inference")

    def sample_actions(self, rng, observation):
        return jnp.repeat(observation.state[:, None], self.action_horizon, axis=1)


@pytest.fixture(scope="module")
def server():
    config = _config.get_config("debug_realman")
    data = config.data.create(None, config.model)
    stats = {key: transforms.NormStats(*np.split(np.arange(56.0), 4)) for key in ("state", "actions")}
    served = policy.Policy(
        StillModel(config.model),
        transforms=[
            *data.data_transforms.inputs,
            transforms.Normalize(stats),
            *policy_config.with_resize_threads(data.model_transforms.inputs),
        ],
        output_transforms=[
            *data.model_transforms.outputs,
            transforms.Unnormalize(stats),
            *data.data_transforms.outputs,
        ],
    )
    example = realman_policy.make_realman_example()
    made = WebsocketPolicyServer(served, HOST, 0, contract_metadata.describe_server(), example=example)
    with serve_in_thread(made, timeout_s=WAIT_S):
        yield made


@pytest.fixture
def client(server):
    with WebsocketClientPolicy(HOST, server.port, connect_timeout_s=WAIT_S, request_timeout_s=WAIT_S) as client:
        yield client


def make_image(height=48, width=64):
    return np.full((height, width, 3), 90, np.uint8)


def request(**changes):
    images = {camera: make_image() for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist")}
    return {"state": np.linspace(0, 1, 14), "images": images, "prompt": "wave"} | changes


def assert_answered(client):
    """Send a good request and see the answer that the still model gives for it."""
    actions = client.infer(request())["actions"]
    assert actions.shape == (50, 14)
    # The model repeats the normalized state, which is a difference for joints and the value itself for grippers.
    state = np.linspace(0, 1, 14)
    expected = np.where(np.arange(14) % 7 == 6, state, 2 * state)
    np.testing.assert_allclose(actions, np.tile(expected, (50, 1)), atol=1e-3)


BAD = {
    "no state": ({"images": {}}, "missing 'state'"),
    "no base camera": (request(images={"cam_left_wrist": make_image()}), "base camera 'cam_high' is missing"),
    "an unknown camera": (
        request(images={"cam_high": make_image(), "webcam": make_image()}),
        r"unknown cameras \['webcam'\], expected some of \['cam_high', 'cam_low',",
    ),
    "images in a list": (request(images=[make_image()]), "'images' is list, expected a dict of camera names"),
    "a flat image": (
        request(images={"cam_high": np.zeros((48, 64), np.uint8)}),
        r"'cam_high': found shape \[48, 64\]",
    ),
    "four channels": (request(images={"cam_high": np.zeros((48, 64, 4), np.uint8)}), r"found shape \[48, 64, 4\]"),
    "no pixels": (request(images={"cam_high": np.zeros((0, 64, 3), np.uint8)}), r"found shape \[0, 64, 3\]"),
    "floats to 255": (
        request(images={"cam_high": 255.0 * np.ones((4, 4, 3))}),
        "found floats from 255.0 to 255.0, expected 0 to 1",
    ),
    "int32 pixels": (request(images={"cam_high": make_image().astype(np.int32)}), "found int32, expected uint8"),
    "NaN pixels": (
        request(images={"cam_high": np.full((4, 4, 3), np.nan)}),
        r"'images.cam_high'\[0\]\[0\]\[0\] is nan",
    ),
    "13 numbers": (request(state=np.zeros(13)), r"'state' has shape \(13,\), expected \(14,\)"),
    "a prompt of numbers": (request(prompt=3), "'prompt' is a int, expected one text"),
    "an endless prompt": (request(prompt="x" * 5000), "'prompt' has 5000 characters, expected at most 2000"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_observation_is_answered_by_what_is_wrong_and_the_next_one_is_served(client, name):
    obs, message = BAD[name]
    with pytest.raises(errors.RemoteError) as failure:
        client.infer(obs)
    assert failure.value.code == "bad_request"
    assert re.search(message, failure.value.remote_text)
    assert len(failure.value.remote_text.splitlines()) == 1
    assert_answered(client)


def test_both_layouts_of_an_image_and_floats_up_to_one_are_served_alike(client):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    variants = (pixels, np.moveaxis(pixels, -1, 0), pixels.astype(np.float32) / 255)
    answers = [client.infer(request(images={"cam_high": image}))["actions"] for image in variants]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


def _spoil(rng, tree):
    """Change one thing at a random place of an observation, without breaking the message around it."""
    key = rng.choice(list(tree))
    if isinstance(tree[key], dict) and tree[key] and rng.random() < 0.7:
        return {**tree, key: _spoil(rng, tree[key])}
    junk = rng.choice(
        [
            *(None, True, -1, 1e300, float("nan"), "", "x" * 3000, b"\xff", [], {}, [[1], [2, 3]], {"a": {"b": {}}}),
            *(np.zeros(0), np.zeros((14, 1)), np.array("text"), np.array([b"x"]), np.zeros((1, 1, 3), np.uint8)),
            *(
                np.datetime64("2020-01-01", "s") + np.zeros(14, "m8[s]"),
                np.full(14, np.inf),
                np.ones((3, 3, 3), np.float16),
            ),
        ]
    )
    return rng.choice([{**tree, key: junk}, {k: v for k, v in tree.items() if k != key}, {**tree, f"{key}?": junk}])


def test_hundreds_of_spoilt_observations_leave_the_server_as_it_was(server, client, caplog):
    caplog.set_level("CRITICAL")
    rng, codes, texts = random.Random(0), set(), []
    for _ in range(400):
        try:
            client.infer(_spoil(rng, request()))
            codes.add("answered")
        except errors.RemoteError as e:
            codes.add(e.code)
            texts.append(e.remote_text)
    assert all(len(text.splitlines()) == 1 for text in texts)
    assert not any("Traceback" in text or str(pathlib.Path(__file__).parents[3]) in text for text in texts)
    assert codes == {"answered", "bad_request"}
    # The server counts a request as finished shortly after the client has its answer.
    deadline_s = time.monotonic() + WAIT_S
    while server.gauges()["requests_under_way"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    assert_answered(client)
