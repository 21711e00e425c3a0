"""Real-time chunking end to end: the robot's player, the websocket, the transforms and a real model's sampling."""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi import transforms as _transforms
from openpi.models import gemma_config
from openpi.models import pi0
from openpi.policies import policy as _policy
from openpi.policies import realman_policy
from openpi.serving import contract_metadata
from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.shared import nnx_utils
from openpi.shared import normalize
from openpi.training import config as _config
from openpi_client.errors import RemoteError
from realman import spec
from realman.evaluation import seams
from realman.runtime import client as client_module
from realman.runtime.client import PolicyClient

FPS = 50.0
NUM_FRAMES = 160
STATES = 0.4 * np.sin(np.arange(NUM_FRAMES)[:, None] / FPS + np.arange(14))
IMAGES = {name: np.full((224, 224, 3), 90, np.uint8) for name in spec.CAMERAS}
WAIT_S = 600.0


class CountedPi0(pi0.Pi0):
    """Records each program that is compiled."""

    compiled: ClassVar[list[str | None]] = []

    def sample_actions(self, rng, observation, *, num_steps=10, noise=None, guidance=None):
        self.compiled.append(None if guidance is None else guidance.method)
        return super().sample_actions(rng, observation, num_steps=num_steps, noise=noise, guidance=guidance)


def random_model(config):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: CountedPi0(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.05, leaf.shape), leaf.dtype), nnx_utils.to_pure_dict(state)
    )
    nnx_utils.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


@functools.cache
def make_policy():
    """The chain of `debug_realman` around a smaller, untrained model, because only the handling of numbers is tested."""
    config = _config.get_config("debug_realman")
    size = gemma_config.Config(width=32, depth=1, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=512)
    sizes = {"paligemma_variant": size, "action_expert_variant": size, "vision_variant": "mu/112"}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
    data = config.data.create(None, config.model)
    rng = np.random.default_rng(1)
    stats = {
        key: normalize.NormStats(mean=rng.uniform(-0.1, 0.1, 14), std=rng.uniform(0.2, 0.4, 14))
        for key in ("state", "actions")
    }
    return _policy.Policy(
        random_model(config.model),
        transforms=[*data.data_transforms.inputs, _transforms.Normalize(stats), *data.model_transforms.inputs],
        output_transforms=[
            *data.model_transforms.outputs,
            _transforms.Unnormalize(stats),
            *data.data_transforms.outputs,
        ],
        sample_kwargs={"num_steps": 5},
        metadata={**config.policy_metadata, **contract_metadata.describe_server(["rtc"])},
    )


@pytest.fixture(scope="module")
def connection():
    policy = make_policy()
    example = {**realman_policy.make_realman_example(), "prompt": "wave"}
    server = WebsocketPolicyServer(policy, "127.0.0.1", 0, policy.metadata, example=example)
    with (
        serve_in_thread(server, timeout_s=WAIT_S) as running,
        PolicyClient.connect(
            "127.0.0.1", running.port, cameras=spec.CAMERAS, fps=FPS, reply_timeout_s=WAIT_S
        ) as client,
    ):
        yield client


def test_chunks_continue_what_is_executed_at_any_delay_and_nothing_is_compiled_again(connection):
    asked = []

    def predict(frame, left_over):
        actions = connection.infer(STATES[frame], IMAGES, "wave", left_over).actions
        asked.append((frame, left_over, actions))
        return actions

    assert CountedPi0.compiled == [None, "identity"]  # the server's warm-up
    played = {
        (execution, delay): seams.play(predict, NUM_FRAMES, fps=FPS, execution=execution, delay_steps=delay)
        for execution, delays in {"rtc": (0, 3, 10), "async": (10,)}.items()
        for delay in delays
    }
    assert CountedPi0.compiled == [None, "identity"]
    conditioned = [(left_over, actions) for _, left_over, actions in asked if left_over is not None]
    assert {left_over.delay for left_over, _ in conditioned} == {0, 3, 10}
    for left_over, actions in conditioned:
        # In robot space, though the model's numbers are relative to a state that has changed since.
        np.testing.assert_allclose(actions[: left_over.delay], left_over.actions[: left_over.delay], atol=2e-4)
    for (execution, _), p in played.items():
        assert p.figures()["stalls"] == 0
        assert execution == "async" or p.figures()["held_s"] == 0
    # Beyond the fixed steps it bends away slowly: the model, which knows nothing, would jump from the first one on.
    for frame, left_over, actions in asked:
        if left_over is not None and left_over.delay == 10:
            free = connection.infer(STATES[frame], IMAGES, "wave").actions
            bent, jump = (np.abs(a[10] - left_over.actions[10]).mean() for a in (actions, free))
            assert bent < 0.5 * jump


def test_a_left_over_that_does_not_fit_is_refused_and_the_connection_stays(connection):
    request = client_module.build_request(STATES[0], IMAGES, connection.info.cameras, "wave")
    nan = np.full((10, 14), np.nan, np.float32)
    for left_over, delay, message in (
        (np.zeros((10, 13)), 2, r"'rtc'.*\[10, 13\], expected numbers"),
        (np.zeros((10, 14)), 11, "'delay' is 11, expected a whole number from 0 to 10"),
        (nan, 1, r"'rtc.left_over'\[0\]\[0\] is nan"),
    ):
        with pytest.raises(RemoteError, match=message):
            connection._policy.infer({**request, "rtc": {"left_over": left_over, "delay": delay}})
    assert connection.infer(STATES[0], IMAGES, "wave").actions.shape == (50, 14)
