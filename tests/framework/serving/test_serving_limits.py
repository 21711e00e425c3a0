"""States that cannot be are refused, and what training never saw is said once per connection."""

import contextlib
import http.client
import logging
import re

import numpy as np
import pytest

from openpi import transforms
from openpi.policies import aloha_policy
from openpi.policies import droid_policy
from openpi.policies import libero_policy
from openpi.policies import realman_policy
from openpi.serving import robot_limits
from openpi.serving.background import serve_in_thread
from openpi.serving.observation_contract import ObservationContract
from openpi.serving.observation_contract import RobotLimits
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.shared.errors import DataError
from openpi.shared.normalize import NormStats
from openpi.training import config as _config
from openpi_client import base_policy
from openpi_client import errors
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"
WAIT_S = 20.0
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")


def _limits(arm_order="right_left", **kwargs):
    config = _config.get_config("debug_realman")
    data = config.data.create(None, config.model)
    changed = [
        realman_policy.RealmanInputs(model_type=config.model.model_type, arm_order=arm_order)
        if isinstance(transform, realman_policy.RealmanInputs)
        else transform
        for transform in data.data_transforms.inputs
    ]
    return robot_limits.describe(transforms.Group(inputs=changed), **kwargs)


def _state(**changes):
    """A state of zeros with some numbers changed, by their names."""
    state = np.zeros(14)
    for name, value in changes.items():
        state[realman_policy.DIM_NAMES.index(name)] = value
    return state


def _check(state, limits=None):
    example = realman_policy.make_realman_example()
    ObservationContract.from_example(example, limits or _limits()).check({**example, "state": state})


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (np.array([90, -45, 30, 10, 60, 100, 1] * 2), r"right_waist is 90, expected -3.307 to 3.307 \(12 numbers"),
        (_state(left_elbow=-20.0), "left_elbow is -20, expected -2.556 to 2.556. Check the units"),
        (_state(left_wrist_rotate=6.6), "left_wrist_rotate is 6.6, expected -6.483 to 6.483"),
        (_state(right_gripper=1000), "right_gripper is 1000, expected -0.5 to 1.5"),
        (_state(left_gripper=100), "left_gripper is 100"),
        (_state(left_gripper=-1.0), "left_gripper is -1"),
        (_state(right_shoulder=2.6).astype(np.float32), "right_shoulder is 2.6"),
        (_state(right_waist=200).astype(np.int16), "right_waist is 200"),
        (_state(right_waist=90).tolist(), "right_waist is 90"),
    ],
)
def test_a_state_that_no_arm_can_have_is_refused_by_its_joint(state, problem):
    with pytest.raises(DataError, match=f"observation: 'state' cannot be: {problem}"):
        _check(state)


@pytest.mark.parametrize(
    "state",
    [
        np.zeros(14, np.float32),
        [0.0] * 14,
        realman_policy.STATE_UPPER,
        realman_policy.STATE_LOWER,
        _state(right_waist=3.2, left_gripper=1.2, right_gripper=-0.1),
    ],
)
def test_every_state_that_an_arm_can_have_is_answered(state):
    _check(state)


def test_the_joint_is_named_in_the_order_of_the_clients_numbers():
    limits = _limits("left_right")
    with pytest.raises(DataError, match="left_waist is 90"):
        _check(_state(right_waist=90), limits)


def _checks_of(robot, example):
    return ObservationContract.from_example(example, robot_limits.describe(transforms.Group(inputs=[robot])))


def test_other_robots_are_refused_only_what_is_physically_impossible():
    aloha = aloha_policy.make_aloha_example()
    contract = _checks_of(aloha_policy.AlohaInputs(), aloha)
    contract.check({**aloha, "state": np.tile([3.14, -3.14, 1.6, -1.6, 2, 3, 1.7], 2)})
    with pytest.raises(DataError, match="left_joint_1 is 45"):
        contract.check({**aloha, "state": np.tile([0, 45.0, 0, 0, 0, 0, 0], 2)})
    droid = droid_policy.make_droid_example()
    contract = _checks_of(
        droid_policy.DroidInputs(model_type=_config.get_config("pi0_realman").model.model_type), droid
    )
    contract.check(droid)
    with pytest.raises(DataError, match="'observation/joint_position' cannot be: joint_3 is -90"):
        contract.check({**droid, "observation/joint_position": np.array([0, 0, 0, -90.0, 0, 0, 0])})
    with pytest.raises(DataError, match="'observation/gripper_position' cannot be: gripper is 85"):
        contract.check({**droid, "observation/gripper_position": np.array([85.0])})
    libero = libero_policy.LiberoInputs(model_type=_config.get_config("pi0_realman").model.model_type)
    assert robot_limits.describe(transforms.Group(inputs=[libero])).possible == {}


def _stats(low, high):
    """Statistics in the model's layout, whose left arm is first."""
    return {"state": NormStats((low + high) / 2, (high - low) / 6, low, high)}


def test_a_state_far_outside_training_is_doubted_by_the_name_of_its_joint():
    low, high = np.zeros(14), np.full(14, 0.5)
    low[:7] -= 1.0  # only the left arm went there
    limits = _limits(norm_stats=_stats(low, high))
    contract = ObservationContract.from_example(realman_policy.make_realman_example(), limits)
    assert contract.doubts({"state": _state(left_waist=-2.2, right_waist=1.9)}) == []
    (doubt,) = contract.doubts({"state": _state(right_waist=-2.2)})
    assert re.match(r"'state' is far outside the training data: right_waist is -2.2, expected -1.5 to 2", doubt)


def test_statistics_without_quantiles_and_joints_that_stood_still_leave_room():
    limits = _limits(norm_stats={"state": NormStats(np.zeros(32), np.zeros(32))})
    trained = limits.trained["state"]
    np.testing.assert_allclose(trained.upper, np.full(14, 0.3))
    assert trained.outside(_state(right_waist=0.29)) is None
    assert "left_gripper is 0.9" in trained.outside(_state(left_gripper=0.9))


class Still(base_policy.BasePolicy):
    def infer(self, obs):
        return {"actions": np.tile(obs["state"], (2, 1))}


@contextlib.contextmanager
def _serving(limits):
    example = realman_policy.make_realman_example()
    server = WebsocketPolicyServer(Still(), HOST, 0, example=example, limits=limits)
    with serve_in_thread(server, timeout_s=WAIT_S):
        yield server


def _page(server, path):
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=WAIT_S)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def _request(state, cameras=CAMERAS):
    return {"state": state, "images": {camera: np.zeros((8, 8, 3), np.uint8) for camera in cameras}, "prompt": "wave"}


def test_doubts_are_said_once_per_connection_in_the_log_on_the_page_and_in_the_metrics(caplog):
    limits = _limits(norm_stats=_stats(np.zeros(14), np.full(14, 0.1)), cameras=CAMERAS)
    with _serving(limits) as server, caplog.at_level(logging.WARNING):
        for _ in range(2):
            with WebsocketClientPolicy(HOST, server.port, connect_timeout_s=WAIT_S) as client:
                client.infer(_request(_state()))
                for value in (1.0, 1.1):
                    actions = client.infer(_request(_state(left_elbow=value), CAMERAS[:2]))["actions"]
                    assert actions[0, 9] == value
        page, metrics = _page(server, "/"), _page(server, "/metrics")
    said = [record.getMessage() for record in caplog.records]
    assert sum("'state' is far outside the training data: left_elbow is 1," in text for text in said) == 2
    assert sum("camera 'cam_right_wrist' is missing" in text for text in said) == 2
    assert len(said) == 4
    assert "camera &#x27;cam_right_wrist&#x27; is missing" in page
    assert "openpi_notices_total 4" in metrics


def test_a_state_in_degrees_gets_an_error_and_the_next_request_an_answer():
    with _serving(_limits()) as server, WebsocketClientPolicy(HOST, server.port, connect_timeout_s=WAIT_S) as client:
        with pytest.raises(errors.RemoteError, match=r"right_waist is 90, expected -3\.307 to 3\.307") as failure:
            client.infer(_request(_state(right_waist=90)))
        assert failure.value.code == "bad_request"
        assert client.infer(_request(_state()))["actions"].shape == (2, 14)


def test_a_robot_without_limits_is_served_as_before():
    contract = ObservationContract.from_example(realman_policy.make_realman_example(), RobotLimits())
    assert contract.doubts({"state": np.full(14, 1e6), "images": {}}) == []
