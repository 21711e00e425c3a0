"""The example of a robot of your own runs against a server, is a `Robot`, and is what the document shows."""

import importlib.util
import re
import sys

import numpy as np
import pytest

from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy
from realman import Robot
from realman import spec

METADATA = {
    "robot": "realman_rm65_dual",
    "dim_names": list(spec.DIM_NAMES),
    "action_horizon": 50,
    "action_chunk": 25,
    "fps": 50,
}


@pytest.fixture(scope="module")
def path(repo_root):
    return repo_root / "examples/realman/your_own_robot.py"


@pytest.fixture(scope="module")
def example(path):
    module_spec = importlib.util.spec_from_file_location("your_own_robot", path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    return module


class Still(base_policy.BasePolicy):
    """Predicts that the arms stay where they are."""

    def infer(self, obs: dict) -> dict:
        return {"actions": np.repeat(obs["state"][None], 50, axis=0)}


def test_it_runs_a_policy_to_the_last_step(example, capsys):
    server = WebsocketPolicyServer(Still(), "127.0.0.1", 0, METADATA)
    with serve_in_thread(server):
        example.main(example.Args(port=server.port, max_steps=60))
    steps, predictions = map(int, re.findall(r"\d+", capsys.readouterr().out))
    assert steps == 60
    assert predictions >= 2


def test_it_is_a_robot_of_at_most_40_lines(example, path):
    robot = example.MyRobot()
    assert isinstance(robot, Robot)
    source = path.read_text()
    assert len(_robot(source).splitlines()) <= 40
    target = np.full(14, 0.1)
    robot.connect()
    assert (robot.send(target) == target).all()
    robot.stop()
    assert (robot.send(np.zeros(14)) == target).all(), "a stopped robot moved"


def test_the_document_shows_the_example_as_it_is(path, repo_root):
    document = (repo_root / "docs/your_own_robot.md").read_text()
    (shown,) = re.findall(r"```python\n(class MyRobot.*?)```", document, re.DOTALL)
    assert shown.strip() == _robot(path.read_text()).strip()


def _robot(source: str) -> str:
    return re.search(r"^class MyRobot.*?(?=^@dataclasses)", source, re.DOTALL | re.MULTILINE).group()
