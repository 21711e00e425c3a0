"""The left-over of a chunk on its way from a request to the model: checks, transforms, programs, what clients are told."""

import json
import pathlib
import shutil

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from openpi import transforms as _transforms
from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import real_time_chunking as rtc
from openpi.policies import left_over
from openpi.policies import policy as _policy
from openpi.policies import policy_config
from openpi.policies import realman_policy
from openpi.policies import recorder
from openpi.serving import contract_metadata
from openpi.serving import inference_worker
from openpi.shared import normalize
from openpi.shared.errors import ConfigError
from openpi.shared.errors import DataError
from openpi.training import config as _config
from openpi.training.misc import realman_config

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
CHECKPOINT = GOLDEN / "pi0_checkpoint" / "7"
HORIZON, DIM = 10, 16


class EchoModel(_model.BaseModel):
    """Answers with what it is to go on from, else with its noise, and notes each program."""

    def __init__(self, config):
        super().__init__(config)
        self.rtc_max_delay = getattr(config, "rtc_max_delay", 0)

    def compute_loss(self, rng, observation, actions, *, train=False):
        raise AssertionError("not part of inference")

    def sample_actions(self, rng, observation, *, num_steps=10, noise=None, guidance=None):
        PROGRAMS.append(None if guidance is None else guidance.method)
        shape = (observation.state.shape[0], self.action_horizon, self.action_dim)
        noise = jax.random.normal(rng, shape) if noise is None else noise
        return noise if guidance is None else guidance.target


class DeafModel(EchoModel):
    """Cannot go on from anything, as pi0-FAST."""

    def sample_actions(self, rng, observation, *, noise=None):
        return EchoModel.sample_actions(self, rng, observation, noise=noise)


PROGRAMS: list[str | None] = []


class EchoConfig(pi0_config.Pi0Config):
    def load(self, params, *, remove_extra_params=True):
        return EchoModel(self)


def train_config(rtc_max_delay=0, **data_fields):
    size = gemma_config.Config(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512)
    fields = json.loads((GOLDEN / "pi0.json").read_text())["config"]
    sizes = {"paligemma_variant": size, "action_expert_variant": size, "vision_variant": "mu/16"}
    return _config.TrainConfig(
        name="tiny_realman",
        model=EchoConfig(**fields | sizes | {"rtc_max_delay": rtc_max_delay}),
        data=realman_config.LeRobotRealmanDataConfig(**{"repo_id": "realman/demo", **data_fields}),
        policy_metadata={"robot": "realman_rm65_dual"},
    )


def make_policy(config=None, **kwargs):
    return policy_config.create_trained_policy(config or train_config(), CHECKPOINT, **kwargs)


def request(num_left=6, delay=2, *, seed=0, **options):
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (num_left, 14)).astype(np.float32)
    example = {**realman_policy.make_realman_example(), "prompt": "wave", "state": rng.uniform(-1, 1, 14)}
    return {**example, "rtc": {"left_over": actions, "delay": delay, **options}}


@pytest.mark.parametrize("fields", [{}, {"arm_order": "left_right"}, {"use_delta_joint_actions": False}])
def test_a_left_over_that_the_model_repeats_comes_back_as_it_was(fields):
    policy = make_policy(train_config(**fields))
    for seed in range(3):
        obs = request(7, seed=seed)
        np.testing.assert_allclose(policy.infer(obs)["actions"][:7], obs["rtc"]["left_over"], rtol=1e-5, atol=1e-5)


def test_the_model_sees_differences_to_the_state_of_now_normalised_with_the_left_arm_first():
    policy = POLICY
    obs = request(4)
    stats = normalize.load(CHECKPOINT / "assets" / "realman" / "demo")["actions"]
    _, wanted = policy.left_over.split(obs)
    inputs, kwargs = policy._prepare_guided(obs)

    def swap(x):
        return np.concatenate([x[..., 7:], x[..., :7]], axis=-1)

    relative = swap(obs["rtc"]["left_over"]) - np.where(realman_policy.DELTA_MASK, swap(obs["state"]), 0)
    expected = (relative - stats.mean) / (stats.std + 1e-6)
    guidance = kwargs["guidance"]
    np.testing.assert_allclose(guidance.target[0, :4, :14], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(guidance.target[0, 4:], 0)
    np.testing.assert_array_equal(guidance.target[..., 14:], 0)
    np.testing.assert_array_equal(guidance.is_used[0], np.arange(DIM) < 14)
    assert guidance.target.shape == (1, HORIZON, DIM)
    assert (guidance.num_left[0], guidance.delay[0], wanted.delay) == (4, 2, 2)
    assert "actions" not in inputs


def guidance_of(policy, **options):
    return policy._prepare_guided(request(**options))[1]["guidance"]


def test_each_method_has_its_published_settings_and_a_request_may_change_them():
    policy = make_policy(train_config(rtc_max_delay=2), sample_kwargs={"num_steps": 7}, rtc_methods=rtc.METHODS)
    identity, vjp = guidance_of(policy, method="identity"), guidance_of(policy, method="vjp")
    assert (identity.max_weight[0], identity.prior_std[0]) == (7, np.float32(0.2))
    assert (vjp.max_weight[0], vjp.prior_std[0]) == (5, 1)
    assert rtc.SCHEDULES[identity.schedule[0]] == "exp"
    other = guidance_of(policy, method="vjp", schedule="zeros", max_guidance_weight=3)
    assert (other.max_weight[0], rtc.SCHEDULES[other.schedule[0]]) == (3, "zeros")


def test_the_method_is_the_trained_one_as_far_as_it_was_trained():
    trained, plain = make_policy(train_config(rtc_max_delay=2)), POLICY
    assert guidance_of(trained).method == "prefix"
    assert guidance_of(trained, delay=3).method == "identity"
    assert guidance_of(plain).method == "identity"
    with pytest.raises(
        DataError, match=r"'delay' is 3, but the model was trained for delays up to 2 \(method 'prefix'\)"
    ):
        trained.infer(request(delay=3, method="prefix"))
    with pytest.raises(DataError, match=r"'method' is 'prefix', this server offers \['identity'\]"):
        plain.infer(request(method="prefix"))
    with pytest.raises(DataError, match="trained for delays up to 2"):
        make_policy(train_config(rtc_max_delay=2), rtc_methods=("prefix",)).infer(request(delay=3))


NAN = np.full((3, 14), np.nan, np.float32)
ROWS = np.zeros((3, 14), np.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ROWS, "found a ndarray, expected a dict with"),
        ({}, "'left_over' is missing, 'delay' is missing"),
        ({"left_over": ROWS, "delay": 1, "s": 2}, "'s' is unknown, expected some of"),
        ({"left_over": [[1.0], [1.0, 2.0]], "delay": 1}, "'left_over' is a ragged list"),
        ({"left_over": ROWS[0], "delay": 1}, r"'left_over' is float32 \[14\], expected rows of numbers"),
        ({"left_over": ROWS.astype(str), "delay": 1}, r"'left_over' is <U\d+ \[3, 14\]"),
        ({"left_over": ROWS[:0], "delay": 0}, "'left_over' has 0 rows, expected 1 to 10"),
        ({"left_over": np.zeros((11, 14)), "delay": 0}, "'left_over' has 11 rows, expected 1 to 10"),
        ({"left_over": NAN, "delay": 0}, "'left_over' is not finite"),
        ({"left_over": ROWS[:, :13], "delay": 0}, r"rtc.*found float32 \[3, 13\], expected numbers \['horizon', 14\]"),
        ({"left_over": ROWS, "delay": 4}, "'delay' is 4, expected a whole number from 0 to 3"),
        ({"left_over": ROWS, "delay": -1}, "'delay' is -1"),
        ({"left_over": ROWS, "delay": 1.5}, "'delay' is 1.5"),
        ({"left_over": ROWS, "delay": True}, "'delay' is True"),
        ({"left_over": ROWS, "delay": 1, "schedule": "cosine"}, "'schedule' is 'cosine', expected one of"),
        ({"left_over": ROWS, "delay": 1, "schedule": ROWS}, "'schedule' is array"),
        ({"left_over": ROWS, "delay": 1, "method": ["identity"]}, r"'method' is \['identity'\]"),
        ({"left_over": ROWS, "delay": 1, "max_guidance_weight": 0}, "'max_guidance_weight' is 0"),
        ({"left_over": ROWS, "delay": 1, "max_guidance_weight": float("inf")}, "'max_guidance_weight' is inf"),
    ],
)
def test_a_bad_left_over_is_refused_in_one_line(value, message):
    with pytest.raises(DataError, match=message) as error:
        POLICY.infer({**request(), "rtc": value})
    assert len(str(error.value)) < 250


POLICY = make_policy()


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(ROWS),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*left_over._KEYS, "x"]), inner, min_size=1)
        ),
        max_leaves=5,
    )
)
def test_whatever_a_request_holds_it_is_read_or_refused(value):
    try:
        _, found = POLICY.left_over.split({"rtc": value})
    except DataError:
        return
    assert found is not None
    assert 0 <= found.delay <= len(found.actions) <= HORIZON


def test_a_model_without_guidance_says_so():
    model = DeafModel(train_config().model)
    policy = _policy.Policy(model)
    assert policy.left_over.metadata == {}
    state = {"state": np.zeros(3, np.float32), "image": {"base_0_rgb": np.zeros((4, 4, 3), np.uint8)}}
    assert policy.warm_up_requests(state, policy.infer(state)) == []
    with pytest.raises(DataError, match="this policy does not support real-time chunking"):
        policy.infer({**state, "rtc": {}})
    with pytest.raises(
        ConfigError, match=r"found methods \['identity'\], expected some of \[\]. pi0-FAST supports none"
    ):
        _policy.Policy(model, rtc_methods=("identity",))
    with pytest.raises(ConfigError, match=r"found methods \['prefix'\]"):
        make_policy(rtc_methods=("prefix", "identity"))
    with pytest.raises(DataError, match="does not support real-time chunking"):
        make_policy(rtc_methods=()).infer(request())


def test_a_policy_whose_clients_use_other_names_says_that_it_cannot_go_on():
    repack = _transforms.RepackTransform({"state": "state", "images": "images", "prompt": "prompt"})
    keep = _transforms.Group(inputs=[lambda data: {key: data[key] for key in repack.structure}])
    with pytest.raises(DataError, match="the policy's transforms accept no actions"):
        make_policy(repack_transforms=keep).infer(request())


def test_a_left_over_among_a_batch_gives_what_single_calls_give():
    plain = {key: value for key, value in request().items() if key != "rtc"}
    observations = [plain, request(5, seed=3), plain]
    alone, together = make_policy(), make_policy()
    expected = [alone.infer(obs)["actions"] for obs in observations]
    np.testing.assert_array_equal([r["actions"] for r in together.infer_batch(observations)], expected)


def test_the_request_is_not_changed_and_may_be_read_only():
    obs = request()
    obs["rtc"]["left_over"].flags.writeable = False
    before = obs["rtc"]["left_over"].copy()
    POLICY.infer(obs)
    assert set(obs["rtc"]) == {"left_over", "delay"}
    np.testing.assert_array_equal(obs["rtc"]["left_over"], before)


@pytest.mark.parametrize(
    ("said", "methods"), [(0, ("identity",)), (2, ("prefix", "identity")), (None, ("prefix", "identity"))]
)
def test_what_the_checkpoint_says_of_its_training_wins_over_the_config(tmp_path, said, methods):
    step_dir = shutil.copytree(CHECKPOINT, tmp_path / "7")
    metadata = json.loads((step_dir / "_CHECKPOINT_METADATA").read_text())
    custom = {"data_loader": {}} | ({} if said is None else {"rtc_max_delay": said})
    (step_dir / "_CHECKPOINT_METADATA").write_text(json.dumps({**metadata, "custom_metadata": custom}))
    policy = policy_config.create_trained_policy(train_config(rtc_max_delay=4), step_dir)
    assert policy.left_over.methods == methods
    assert policy.left_over.metadata["rtc"].get("max_prefix_delay") == {0: None, 2: 2, None: 4}[said]


@pytest.mark.parametrize("recorded", [False, True])
def test_after_the_warm_up_no_request_meets_a_program_for_the_first_time(recorded, tmp_path):
    policy = make_policy(train_config(rtc_max_delay=3), rtc_methods=rtc.METHODS)
    if recorded:
        policy = recorder.PolicyRecorder(policy, tmp_path)
    worker = inference_worker.InferenceWorker(policy, max_batch=2)
    PROGRAMS.clear()
    worker.start({**realman_policy.make_realman_example()}).result(60)
    assert PROGRAMS == [None, "prefix", "identity", "vjp", None]  # the last one: the batch of two
    for obs in (request(), request(9, 5, schedule="ones"), request(method="vjp", delay=0), request(1, 1)):
        worker.submit(obs).result(60)
    assert len(PROGRAMS) == 5
    assert worker.stop(60)
    if recorded:
        policy.close()


def test_a_record_holds_what_was_left_over(tmp_path):
    policy = recorder.PolicyRecorder(POLICY, tmp_path)
    obs = request(method="identity")
    policy.infer(obs)
    policy.close()
    (path,) = recorder.find_records(tmp_path)
    inputs = recorder.read_record(path).inputs
    np.testing.assert_array_equal(inputs["rtc"]["left_over"], obs["rtc"]["left_over"])
    assert (inputs["rtc"]["delay"], inputs["rtc"]["method"]) == (2, "identity")
    np.testing.assert_allclose(POLICY.infer(inputs)["actions"], POLICY.infer(obs)["actions"], atol=1e-6)


def test_clients_are_told_what_a_server_can_do():
    config = train_config(rtc_max_delay=3)
    data = config.data.create(None, config.model)

    def describe(policy):
        return contract_metadata.describe_checkpoint(
            config, data, CHECKPOINT, example=None, default_prompt=None, policy=policy
        )

    told = describe(make_policy(config))
    assert told["rtc"] == {
        "methods": ["prefix", "identity"],
        "schedules": ["exp", "linear", "ones", "zeros"],
        "max_prefix_delay": 3,
    }
    assert "rtc" in told["protocol"]["features"]
    untold = describe(make_policy(config, rtc_methods=()))
    assert "rtc" not in untold
    assert "rtc" not in untold["protocol"]["features"]
