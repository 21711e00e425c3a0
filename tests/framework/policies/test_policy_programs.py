"""Which programs a policy runs: little padding is computed, and nothing is compiled after the first call of a kind."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from openpi.models import model as _model
from openpi.models import pi0
from openpi.models import pi0_config
from openpi.models import pi0_fast
from openpi.policies import policy as _policy
from openpi.policies import program_shapes
from openpi.serving.inference_worker import InferenceWorker

SLOTS = _model.IMAGE_KEYS


class TracedModel(_model.BaseModel):
    """Notes the shapes that it is compiled for; its actions tell what it was given."""

    takes_slots_without_image = True

    def __init__(self):
        super().__init__(pi0_config.Pi0Config(action_dim=2, action_horizon=3))

    def compute_loss(self, rng, observation, actions, *, train=False):
        raise AssertionError("not part of inference")

    def sample_actions(self, rng, observation, *, noise=None):
        batch, length = observation.tokenized_prompt.shape
        TRACED.append((batch, length, tuple(sorted(observation.images)), noise is not None))
        told = jnp.sum(observation.tokenized_prompt, axis=1) + sum(
            jnp.where(observation.image_masks[slot], image[:, 0, 0, 0], 0) for slot, image in observation.images.items()
        )
        return jnp.broadcast_to(told[:, None, None], (batch, 3, 2)).astype(jnp.float32)


TRACED = []


@pytest.fixture(autouse=True)
def traced():
    TRACED.clear()
    return TRACED


def request(num_tokens, *, slots=SLOTS, longest=48):
    mask = np.arange(longest) < num_tokens
    return {
        "state": np.zeros(2, np.float32),
        "image": {slot: np.full((2, 2, 3), slot in slots, np.float32) for slot in SLOTS},
        "image_mask": {slot: np.bool_(slot in slots) for slot in SLOTS},
        "tokenized_prompt": mask.astype(np.int32),
        "tokenized_prompt_mask": mask,
    }


def make_policy():
    return _policy.Policy(TracedModel())


def test_the_first_call_has_its_own_and_the_largest_program_compiled_and_no_later_call_any(traced):
    policy = make_policy()
    assert policy.infer(request(8))["actions"][0, 0] == 8 + 3
    assert traced == [(1, 48, tuple(sorted(SLOTS)), False), (1, 16, tuple(sorted(SLOTS)), False)]
    for num_tokens in (1, 16, 17, 40, 48):
        for slots in (SLOTS, SLOTS[:2], SLOTS[:1]):
            answer = policy.infer(request(num_tokens, slots=slots))
            assert answer["actions"][0, 0] == num_tokens + len(slots)
    assert len(traced) == 2


def test_a_slot_that_is_empty_from_the_first_call_on_is_not_computed_and_may_be_filled_later(traced):
    policy = make_policy()
    policy.infer(request(12, slots=SLOTS[:2]))
    assert traced[-1] == (1, 16, tuple(sorted(SLOTS[:2])), False)
    assert policy.infer(request(20))["actions"][0, 0] == 20 + 3
    assert len(traced) == 2


def test_a_model_that_reads_masked_images_gets_all_of_them_and_the_padding_that_they_mix_with(traced, monkeypatch):
    """pi0-FAST's published decoding: the golden tokens of a sample with a masked camera change without the padding."""
    monkeypatch.setattr(TracedModel, "takes_slots_without_image", False)
    policy = make_policy()
    policy.infer(request(8, slots=SLOTS[:2]))
    assert traced == [(1, 48, tuple(sorted(SLOTS)), False)]
    traced.clear()
    policy = make_policy()
    policy.infer(request(8))
    assert traced[-1] == (1, 16, tuple(sorted(SLOTS)), False)
    num_programs = len(traced)
    assert policy.infer(request(8, slots=SLOTS[:2]))["actions"][0, 0] == 8 + 2
    assert len(traced) == num_programs
    assert pi0.Pi0.takes_slots_without_image
    assert not pi0_fast.Pi0FAST.takes_slots_without_image


def test_one_image_stays_when_every_camera_is_missing(traced):
    make_policy().infer(request(48, slots=()))
    assert traced[-1] == (1, 48, ("base_0_rgb",), False)


def test_a_batch_takes_the_program_of_its_longest_prompt_and_of_all_its_cameras(traced):
    policy = make_policy()
    requests = [request(8, slots=SLOTS[:1]), request(15, slots=SLOTS[1:2])]
    answers = policy.infer_batch(requests)
    assert [answer["actions"][0, 0] for answer in answers] == [9, 16]
    assert traced == [(2, 48, tuple(sorted(SLOTS)), True), (2, 16, tuple(sorted(SLOTS[:2])), True)]


def test_a_warm_server_never_compiles(traced):
    worker = InferenceWorker(make_policy(), max_batch=2)
    worker.start(request(8)).result(60)
    num_programs = len(traced)
    assert {(batch, length) for batch, length, _, _ in traced} == {(1, 48), (1, 16), (2, 48), (2, 16)}
    futures = [worker.submit(request(num_tokens), client=num_tokens) for num_tokens in (3, 17, 48, 33)]
    assert [future.result(60).result["actions"][0, 0] for future in futures] == [6, 20, 51, 36]
    assert worker.stop(60)
    assert len(traced) == num_programs


@pytest.mark.parametrize(
    ("longest", "used", "expected"),
    [
        (48, 0, 16),
        (48, 16, 16),
        (48, 17, 48),
        (200, 8, 96),
        (200, 97, 144),
        (200, 145, 200),
        (250, 20, 96),
        (32, 3, 32),
    ],
)
def test_prompts_have_few_lengths(longest, used, expected):
    shapes = program_shapes.ProgramShapes(may_drop_images=False)
    assert shapes.choose("a kind", [request(used, longest=longest)])[-1].length == expected


def test_tokens_after_a_gap_are_kept():
    inputs = request(4)
    inputs["tokenized_prompt_mask"][20] = True
    shapes = program_shapes.ProgramShapes(may_drop_images=False)
    assert shapes.choose("a kind", [inputs])[-1].length == 48


def test_cutting_leaves_the_callers_inputs_alone():
    inputs = request(8)
    inputs["token_ar_mask"] = inputs["token_loss_mask"] = inputs["tokenized_prompt_mask"]
    smaller = program_shapes.cut(inputs, program_shapes.Shape(16, frozenset(SLOTS[:1])))
    assert {key: len(smaller[key]) for key in smaller if key.startswith("token")} == dict.fromkeys(
        ("tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask", "token_loss_mask"), 16
    )
    assert list(smaller["image"]) == [SLOTS[0]]
    assert len(smaller["image_mask"]) == 3
    assert inputs["tokenized_prompt"].shape == (48,)
    assert len(inputs["image"]) == 3


def test_arguments_of_another_form_are_another_kind():
    kind = functools.partial(program_shapes.kind_of, 1)
    noise = jnp.zeros((1, 3, 2))
    assert kind({"noise": noise}) == kind({"noise": np.ones((1, 3, 2), np.float32)})
    others = [
        kind({}),
        kind({"noise": noise[:, :2]}),
        kind({"start": noise}),
        program_shapes.kind_of(2, {"noise": noise}),
    ]
    assert len({kind({"noise": noise}), *others}) == 5
