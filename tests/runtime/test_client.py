import contextlib
import re
import socket
from unittest import mock

import numpy as np
import pytest

from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.training.misc import realman_config
from openpi_client import base_policy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from realman import spec
from realman.errors import ServerError
from realman.runtime.client import PolicyClient
from realman.runtime.client import read_metadata
from realman.runtime.client import read_reply

METADATA = {
    "robot": "realman_rm65_dual",
    "dim_names": list(spec.DIM_NAMES),
    "cameras": ["cam_high", "cam_left_wrist"],
    "action_chunk": 25,
    "action_horizon": 50,
    "fps": 50,
}


class EchoPolicy(base_policy.BasePolicy):
    """Holds the shown position, in a chunk of a given shape."""

    def __init__(self, steps: int = 50, width: int = 14) -> None:
        self.shape = (steps, width)
        self.requests: list[dict] = []

    def infer(self, obs: dict) -> dict:
        self.requests.append(obs)
        return {"actions": np.broadcast_to(np.resize(obs["state"], self.shape[1]), self.shape)}


@contextlib.contextmanager
def serving(policy: base_policy.BasePolicy, port: int = 0, **metadata):
    server = WebsocketPolicyServer(policy, "127.0.0.1", port, {**METADATA, **metadata})
    with serve_in_thread(server):
        yield server


def connect(server: WebsocketPolicyServer, **options) -> PolicyClient:
    return PolicyClient.connect("127.0.0.1", server.port, **{"cameras": spec.CAMERAS, "fps": 50.0, **options})


def frames(height: int = 48, width: int = 64) -> dict[str, np.ndarray]:
    return {name: np.full((height, width, 3), 10 * i, np.uint8) for i, name in enumerate(spec.CAMERAS, start=1)}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_prediction_carries_the_robots_observation_there_and_the_actions_back():
    policy, state = EchoPolicy(), np.linspace(-1, 1, 14)
    with serving(policy) as server, connect(server) as client:
        prediction = client.infer(state, frames(), "fold the towel")
    (request,) = policy.requests
    np.testing.assert_allclose(request["state"], state, atol=1e-7)
    assert request["prompt"] == "fold the towel"
    assert prediction.actions.shape == (50, 14)
    np.testing.assert_allclose(prediction.actions[49], state, atol=1e-7)
    assert prediction.actions.flags.writeable
    assert prediction.round_trip_s > 0
    assert 0 <= prediction.infer_s <= prediction.round_trip_s


def test_images_travel_as_jpeg_where_the_site_asks_for_it_and_the_policy_sees_pixels():
    policy = EchoPolicy()
    features = {"features": ["jpeg_images"]}
    with serving(policy, protocol=features) as server, connect(server, jpeg_quality=90) as client:
        sent = []
        infer = client._policy.infer
        client._policy.infer = lambda request: sent.append(request) or infer(request)
        client.infer(np.zeros(14), frames(), "fold")
    assert all(isinstance(image, bytes) and len(image) < 10_000 for image in sent[0]["images"].values())
    image = policy.requests[0]["images"]["cam_left_wrist"]
    assert (image.shape, image.dtype) == ((224, 224, 3), np.uint8)
    assert abs(int(image[112, 112, 0]) - 30) < 4


def test_a_server_that_takes_no_jpeg_is_refused_before_anything_is_asked():
    with (
        serving(EchoPolicy(), protocol={"features": []}) as server,
        pytest.raises(ServerError, match=r"does not accept JPEG images\. Remove 'jpeg_quality'"),
    ):
        connect(server, jpeg_quality=90)


def test_only_the_cameras_that_the_policy_uses_are_sent_at_its_size_with_their_proportions():
    policy = EchoPolicy()
    with serving(policy) as server, connect(server) as client:
        client.infer(np.zeros(14), frames(480, 640))
    images = policy.requests[0]["images"]
    assert set(images) == {"cam_high", "cam_left_wrist"}
    assert images["cam_high"].shape == (224, 224, 3)
    # 640x480 fits as 224x168, with 28 black rows above and below.
    assert images["cam_high"][:28].max() == 0
    assert images["cam_high"][28:196].min() == 10


def test_without_a_list_of_cameras_all_are_sent_and_without_a_prompt_none():
    policy = EchoPolicy()
    with serving(policy, cameras=None) as server, connect(server) as client:
        client.infer(np.zeros(14), frames())
    assert set(policy.requests[0]["images"]) == set(spec.CAMERAS)
    assert "prompt" not in policy.requests[0]


def test_a_host_with_a_port_is_one_line_that_says_where_the_port_belongs():
    with pytest.raises(ServerError, match=r"found the host '127.0.0.1:8000', .* its port as a number"):
        PolicyClient.connect("127.0.0.1:8000", 8000, cameras=spec.CAMERAS, fps=50, connect_timeout_s=0.1)


def test_no_server_is_one_line_that_says_how_to_start_one():
    port = free_port()
    with pytest.raises(
        ServerError, match=rf"no policy server at 127\.0\.0\.1:{port} after 0\.3 s .*make serve"
    ) as caught:
        PolicyClient.connect("127.0.0.1", port, cameras=spec.CAMERAS, fps=50.0, connect_timeout_s=0.3)
    assert "\n" not in str(caught.value)


def test_every_difference_between_server_and_robot_is_named_at_once():
    names = list(spec.DIM_NAMES)
    names[0], names[7] = names[7], names[0]
    metadata = {**METADATA, "robot": "aloha", "dim_names": names, "cameras": ["cam_top"], "action_chunk": 60, "fps": 30}
    with pytest.raises(ServerError) as caught:
        read_metadata(metadata, address="here:1", cameras=spec.CAMERAS, fps=50.0)
    message = str(caught.value)
    for part in (
        "'robot' is 'aloha', expected 'realman_rm65_dual'",
        "[0] 'left_waist' for 'right_waist'",
        "[7] 'right_waist' for 'left_waist'",
        "'cameras' asks for cam_top",
        "'action_chunk' is 60, more than 'action_horizon' 50",
        "'fps' is 30, this side runs at 50",
    ):
        assert part in message
    assert "\n" not in message


def test_what_the_configs_of_this_robot_publish_is_accepted():
    info = read_metadata(realman_config.policy_metadata(50), address="here:1", cameras=spec.CAMERAS, fps=50.0)
    assert info.action_horizon == 50
    assert info.action_chunk == spec.ACTION_CHUNK
    assert info.cameras == ("cam_high", "cam_left_wrist", "cam_right_wrist")


@pytest.mark.parametrize("key", ["robot", "dim_names", "action_chunk", "action_horizon", "fps"])
def test_a_server_that_does_not_say_what_it_is_is_refused(key):
    metadata = {k: v for k, v in METADATA.items() if k != key}
    with pytest.raises(ServerError, match=f"'{key}'"):
        read_metadata(metadata, address="here:1", cameras=spec.CAMERAS, fps=50.0)


def test_a_server_of_another_robot_is_refused_when_the_connection_is_made():
    with serving(EchoPolicy(), fps=30) as server, pytest.raises(ServerError, match="'fps' is 30"):
        connect(server)


@pytest.mark.parametrize("chunk", [0, 51])
def test_a_chunk_that_the_policy_cannot_give_is_refused(chunk):
    with (
        serving(EchoPolicy()) as server,
        pytest.raises(ServerError, match=rf"action_chunk is {chunk}, expected 1\.\.50"),
    ):
        connect(server, action_chunk=chunk)


@pytest.mark.parametrize(("steps", "width"), [(24, 14), (50, 13), (50, 15)])
def test_a_reply_of_the_wrong_shape_is_refused_with_both_shapes(steps, width):
    with serving(EchoPolicy(steps, width)) as server, connect(server) as client:
        message = re.escape(f"'actions' have shape ({steps}, {width}), expected (at least 25, 14)")
        with pytest.raises(ServerError, match=message):
            client.infer(np.zeros(14), frames())


def test_a_reply_that_is_not_finite_is_refused_with_its_place():
    actions = np.zeros((50, 14))
    actions[4, 2] = actions[6, 13] = np.nan
    with pytest.raises(ServerError, match=r"not finite at step 4, right_elbow \[2\] \(2 such values\)"):
        read_reply({"actions": actions}, address="here:1", min_steps=25)


@pytest.mark.parametrize(
    "reply", [{}, {"action": [1]}, {"actions": "go left"}, {"actions": [[1, 2], [3]]}, {"actions": 3.0}]
)
def test_a_reply_without_usable_actions_is_refused(reply):
    with pytest.raises(ServerError, match=r"here:1.*actions"):
        read_reply(reply, address="here:1", min_steps=25)


@pytest.mark.parametrize("kind", ["U4", "S4", "?", "m8[s]"])
def test_texts_dates_and_truth_values_are_not_taken_for_positions(kind):
    with pytest.raises(ServerError, match=r"here:1: 'actions' hold .*, expected numbers"):
        read_reply({"actions": np.zeros((50, 14)).astype(kind)}, address="here:1", min_steps=25)


# What another program may say under a key of this protocol.
FOREIGN = [5, 0.5, True, "x", b"x", [1], ["x", None], [[1]], {"a": 1}, float("nan"), np.array([1, 2]), np.array(["a"])]


@pytest.mark.parametrize("value", FOREIGN, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(
    "key", ["robot", "dim_names", "units", "state_dim", "image_size", "cameras", "action_chunk", "action_horizon"]
)
def test_metadata_of_another_type_is_refused_by_its_key(key, value):
    if key == "action_chunk" and value is FOREIGN[0]:
        value = -value
    with pytest.raises(ServerError, match=f"'{key}'"):
        read_metadata({**METADATA, key: value}, address="here:1", cameras=spec.CAMERAS, fps=50.0)


@pytest.mark.parametrize("value", FOREIGN, ids=lambda value: repr(value)[:20])
def test_features_of_another_type_are_none(value):
    for protocol in (value, {"features": value}):
        info = read_metadata({**METADATA, "protocol": protocol}, address="here:1", cameras=spec.CAMERAS, fps=50.0)
        with pytest.raises(ServerError, match="expected real-time chunking"):
            PolicyClient(mock.create_autospec(WebsocketClientPolicy, instance=True), info, 25).require_rtc()


@pytest.mark.parametrize(
    "value", [*FOREIGN, {"infer_ms": "x"}, {"infer_ms": float("nan")}, {"infer_ms": [1]}], ids=repr
)
def test_a_time_that_is_none_does_not_end_a_run(value):
    server = mock.create_autospec(WebsocketClientPolicy, instance=True)
    server.infer.return_value = {"actions": np.zeros((50, 14)), "server_timing": value}
    info = read_metadata(METADATA, address="here:1", cameras=spec.CAMERAS, fps=50.0)
    assert PolicyClient(server, info, 25).infer(np.zeros(14), frames()).infer_s is None


def test_names_as_an_array_are_names():
    said = {**METADATA, "dim_names": np.array(spec.DIM_NAMES), "cameras": np.array(["cam_high"]), "fps": np.float32(50)}
    info = read_metadata(said, address="here:1", cameras=spec.CAMERAS, fps=50.0)
    assert info.cameras == ("cam_high",)


def test_an_error_of_the_policy_arrives_as_one_line_and_the_next_request_is_answered():
    class Moody(EchoPolicy):
        def infer(self, obs):
            if obs["prompt"] == "fail":
                raise ValueError("gripper values look like millimeters")
            return super().infer(obs)

    with serving(Moody()) as server, connect(server) as client:
        with pytest.raises(ServerError, match="gripper values look like millimeters") as caught:
            client.infer(np.zeros(14), frames(), "fail")
        assert "\n" not in str(caught.value)
        assert client.infer(np.ones(14), frames(), "continue").actions[0, 0] == 1


def test_a_server_that_dies_during_a_request_is_a_server_error():
    class Dying(EchoPolicy):
        def infer(self, obs):
            self.server.stop()
            return super().infer(obs)

    def ask_until_it_fails(client: PolicyClient) -> None:
        for _ in range(100):
            client.infer(np.zeros(14), frames())

    policy = Dying()
    with serving(policy) as server, connect(server) as client:
        policy.server = server
        with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{server.port}"):
            ask_until_it_fails(client)


CHANGED = {
    "rate": ({"fps": 30}, r"'fps' was 50, is 30"),
    "order of the arms": (
        {"dim_names": [*spec.DIM_NAMES[7:], *spec.DIM_NAMES[:7]]},
        r"'dim_names\[0\]' was 'right_waist'",
    ),
    "robot": ({"robot": "other_robot"}, r"'robot' was 'realman_rm65_dual', is 'other_robot'"),
    "cameras": ({"cameras": ["cam_low", "cam_left_wrist"]}, r"'cameras\[0\]' was 'cam_high', is 'cam_low'"),
    "horizon": ({"action_horizon": 40}, r"'action_horizon' was 50, is 40"),
    "checkpoint of the same contract": ({"checkpoint": "run/9"}, r"'checkpoint' was 'run/7', is 'run/9'"),
}


@pytest.mark.parametrize(("changes", "message"), CHANGED.values(), ids=CHANGED)
def test_a_server_that_is_another_one_after_a_restart_ends_the_run(changes, message):
    with serving(EchoPolicy(), checkpoint="run/7") as server:
        client, port = connect(server), server.port
        client.infer(np.zeros(14), frames())
    with client, serving(policy := EchoPolicy(), port=port, **{"checkpoint": "run/7", **changes}):
        with pytest.raises(ServerError, match=message) as caught:
            client.infer(np.zeros(14), frames())
        assert "\n" not in str(caught.value)
        assert policy.requests == []


def test_a_server_that_was_restarted_with_the_same_policy_goes_on():
    with serving(EchoPolicy()) as server:
        client, port = connect(server), server.port
        client.infer(np.zeros(14), frames())
    with client, serving(EchoPolicy(), port=port):
        assert client.infer(np.ones(14), frames()).actions[0, 0] == 1


@pytest.mark.parametrize("fps", [30, 30.0, 29.97])
def test_a_policy_of_another_rate_is_accepted_by_a_robot_that_runs_at_it(fps):
    with serving(EchoPolicy(), fps=fps) as server:
        with connect(server, fps=fps) as client:
            assert client.fps == fps
        with pytest.raises(
            ServerError, match=rf"'fps' is {fps:g}, .*, or set 'fps = {fps:g}' of the robot in site.toml"
        ):
            connect(server, fps=50.0)


@pytest.mark.parametrize("key", ["action_chunk", "action_horizon", "fps"])
def test_a_number_without_an_end_is_refused(key):
    with pytest.raises(ServerError, match=rf"'{key}' is inf, expected a positive (whole )?number"):
        read_metadata({**METADATA, key: float("inf")}, address="here:1", cameras=spec.CAMERAS, fps=50.0)
