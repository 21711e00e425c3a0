import copy
import json
import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from openpi import transforms
from openpi.shared import errors
from openpi.shared import normalize

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "framework.json").read_text())
EXACT = {"rtol": 0, "atol": 1e-6}

floats = st.floats(-8.0, 8.0, width=32)
stats_floats = st.floats(0.125, 4.0, width=32)


def arrays(tree):
    return {key: np.asarray(value) for key, value in tree.items()}


def assert_untouched(before, after):
    flat_before, flat_after = transforms.flatten_dict(before), transforms.flatten_dict(after)
    assert flat_before.keys() == flat_after.keys()
    for path, leaf in flat_before.items():
        np.testing.assert_array_equal(leaf, flat_after[path])


@st.composite
def samples(draw):
    state_dim, horizon = draw(st.integers(3, 16)), draw(st.integers(1, 5))
    return {
        "state": draw(hnp.arrays(np.float32, state_dim, elements=floats)),
        "actions": draw(hnp.arrays(np.float32, (horizon, state_dim), elements=floats)),
        "image": {"base_0_rgb": np.full((4, 6, 3), draw(st.integers(0, 255)), np.uint8)},
        "prompt": "put the cup away",
        "task_index": np.int64(0),
    }


@st.composite
def samples_with_stats(draw):
    sample = draw(samples())
    dim = sample["state"].shape[-1]

    def make_stats():
        low = draw(hnp.arrays(np.float64, dim, elements=floats))
        width = draw(hnp.arrays(np.float64, dim, elements=stats_floats))
        return normalize.NormStats(mean=low, std=width, q01=low, q99=low + width)

    return sample, {"state": make_stats(), "actions": make_stats()}


class FakeTokenizer:
    def tokenize(self, prompt, state=None, actions=None):
        return np.array([len(prompt), 0]), np.array([True, False])

    def extract_actions(self, tokens, action_horizon, action_dim):
        assert tokens.dtype == np.int32
        return np.full((action_horizon, action_dim), tokens.sum(), np.float32)


class FakeFastTokenizer(FakeTokenizer):
    def tokenize(self, prompt, state, actions):
        tokens = np.array([len(prompt), 0 if actions is None else 7])
        return tokens, np.array([True, True]), np.array([0, 1]), np.array([False, True])


# Normalization ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "use_quantiles"), [("z", False), ("q", True)])
def test_normalize_gives_the_golden_numbers(key, use_quantiles):
    golden = GOLDEN["normalize"]
    norm_stats = normalize.deserialize_json(json.dumps(golden["stats"]))
    result = transforms.Normalize(norm_stats, use_quantiles)(arrays(golden["x"]))
    for name, expected in golden[key].items():
        np.testing.assert_allclose(result[name], expected, **EXACT)


@pytest.mark.parametrize(("key", "use_quantiles"), [("unz32", False), ("unq32", True)])
def test_unnormalize_gives_the_golden_numbers_for_padded_data(key, use_quantiles):
    golden = GOLDEN["normalize"]
    norm_stats = normalize.deserialize_json(json.dumps(golden["stats"]))
    result = transforms.Unnormalize(norm_stats, use_quantiles)(arrays(golden["x32"]))
    for name, expected in golden[key].items():
        np.testing.assert_allclose(result[name], expected, **EXACT)


@settings(max_examples=50, deadline=None)
@given(samples_with_stats(), st.booleans())
def test_unnormalize_inverts_normalize(sample_and_stats, use_quantiles):
    sample, norm_stats = sample_and_stats
    there = transforms.Normalize(norm_stats, use_quantiles)(sample)
    back = transforms.Unnormalize(norm_stats, use_quantiles)(there)
    np.testing.assert_allclose(back["state"], sample["state"], **EXACT)
    np.testing.assert_allclose(back["actions"], sample["actions"], **EXACT)


def test_normalize_without_stats_returns_the_same_object():
    data = {"state": np.ones(3)}
    assert transforms.Normalize(None)(data) is data
    assert transforms.Unnormalize(None)(data) is data


def test_quantile_normalization_refuses_stats_without_quantiles_when_it_is_made():
    bare = {"state": normalize.NormStats(mean=np.zeros(2), std=np.ones(2)), "nested": {"actions": _stats(2)}}
    for transform in (transforms.Normalize, transforms.Unnormalize):
        with pytest.raises(errors.DataError, match=r"q01 and q99 are missing for \['state'\]"):
            transform(bare, use_quantiles=True)


def _stats(dim):
    return normalize.NormStats(mean=np.zeros(dim), std=np.ones(dim), q01=-np.ones(dim), q99=np.ones(dim))


def test_normalize_skips_absent_keys_unless_strict_and_unnormalize_never_does():
    norm_stats = {"state": _stats(3), "actions": _stats(3)}
    data = {"state": np.zeros(3, np.float32)}
    assert transforms.Normalize(norm_stats)(data).keys() == {"state"}
    with pytest.raises(errors.DataError, match="actions"):
        transforms.Normalize(norm_stats, strict=True)(data)
    with pytest.raises(ValueError, match="actions"):
        transforms.Unnormalize(norm_stats)(data)


def test_normalize_names_the_widths_when_data_are_wider_than_their_stats():
    with pytest.raises(errors.DataError, match="data have 4 numbers, expected at most 3"):
        transforms.Normalize({"state": _stats(3)})({"state": np.zeros(4)})


# Delta and absolute actions ----------------------------------------------------------------------------------------------


def test_delta_and_absolute_actions_give_the_golden_numbers():
    golden = GOLDEN["delta"]
    sample = {key: np.asarray(golden[key]) for key in ("state", "actions")}
    delta = transforms.DeltaActions(golden["mask"])(sample)
    absolute = transforms.AbsoluteActions(golden["mask"])(sample)
    np.testing.assert_allclose(delta["actions"], golden["delta"], **EXACT)
    np.testing.assert_allclose(absolute["actions"], golden["absolute_of_same"], **EXACT)


@settings(max_examples=50, deadline=None)
@given(samples(), st.lists(st.booleans(), max_size=3))
def test_absolute_actions_invert_delta_actions_and_leave_unmasked_numbers_alone(sample, mask):
    delta = transforms.DeltaActions(mask)(sample)
    back = transforms.AbsoluteActions(mask)(delta)
    np.testing.assert_allclose(back["actions"], sample["actions"], rtol=0, atol=4e-6)  # two float32 sums up to 16
    unmasked = [i for i in range(sample["actions"].shape[-1]) if i >= len(mask) or not mask[i]]
    np.testing.assert_array_equal(delta["actions"][..., unmasked], sample["actions"][..., unmasked])


def test_delta_actions_of_integers_keep_the_fraction_of_the_state():
    sample = {"state": np.array([0.25, 0.5]), "actions": np.array([[1, 2]])}
    np.testing.assert_array_equal(transforms.DeltaActions([True, True])(sample)["actions"], [[0.75, 1.5]])


@pytest.mark.parametrize("transform", [transforms.DeltaActions, transforms.AbsoluteActions])
def test_delta_transforms_return_the_same_object_when_there_is_nothing_to_do(transform):
    with_actions = {"state": np.zeros(2), "actions": np.zeros((1, 2))}
    without_actions = {"state": np.zeros(2)}
    assert transform(None)(with_actions) is with_actions
    assert transform([True])(without_actions) is without_actions


def test_delta_actions_name_the_shapes_when_the_mask_is_too_long():
    with pytest.raises(errors.DataError, match=r"actions \(1, 2\) and state \(2,\) need at least 3"):
        transforms.DeltaActions([True] * 3)({"state": np.zeros(2), "actions": np.zeros((1, 2))})


def test_make_bool_mask_spells_out_runs():
    assert transforms.make_bool_mask(2, -1, 0, 1) == (True, True, False, True)
    assert transforms.make_bool_mask(2, 0, 2) == (True,) * 4


# Purity ------------------------------------------------------------------------------------------------------------------

STATS_3 = {"state": _stats(16), "actions": _stats(16)}
ALL_TRANSFORMS = [
    transforms.RepackTransform({"a": {"state": "state"}, "image": "image/base_0_rgb"}),
    transforms.InjectDefaultPrompt("other"),
    transforms.Normalize(STATS_3),
    transforms.Normalize(STATS_3, use_quantiles=True),
    transforms.Unnormalize(STATS_3),
    transforms.Unnormalize(STATS_3, use_quantiles=True),
    transforms.ResizeImages(8, 8),
    transforms.SubsampleActions(2),
    transforms.DeltaActions((True, False, True)),
    transforms.AbsoluteActions((True, False, True)),
    transforms.TokenizePrompt(FakeTokenizer()),
    transforms.TokenizePrompt(FakeTokenizer(), discrete_state_input=True),
    transforms.TokenizeFASTInputs(FakeFastTokenizer()),
    transforms.ExtractFASTActions(FakeTokenizer(), action_horizon=3, action_dim=2),
    transforms.PromptFromLeRobotTask({0: "x"}),
    transforms.PadStatesAndActions(20),
]


@pytest.mark.parametrize("transform", ALL_TRANSFORMS, ids=lambda t: type(t).__name__)
@settings(max_examples=15, deadline=None)
@given(sample=samples())
def test_a_transform_never_changes_what_it_was_given_even_when_read_only(transform, sample):
    before = copy.deepcopy(sample)
    for leaf in transforms.flatten_dict(sample).values():
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
    transform(sample)
    assert_untouched(before, sample)


# The others --------------------------------------------------------------------------------------------------------------


def test_group_push_appends_inputs_and_prepends_outputs():
    a, b, c, d = (transforms.InjectDefaultPrompt(name) for name in "abcd")
    group = transforms.Group(inputs=[a], outputs=[b]).push(inputs=[c], outputs=[d])
    assert list(group.inputs) == [a, c]
    assert list(group.outputs) == [d, b]


def test_compose_runs_in_order():
    run = transforms.compose([transforms.InjectDefaultPrompt("first"), transforms.InjectDefaultPrompt("second")])
    assert run({})["prompt"].item() == "first"


def test_repack_renames_nested_keys_and_drops_the_rest():
    repack = transforms.RepackTransform({"a": {"b": "b/c"}, "d": "e.f"})
    assert repack({"b": {"c": 1, "dropped": 0}, "e.f": 2}) == {"a": {"b": 1}, "d": 2}


def test_repack_keeps_the_levels_of_its_structure():
    """LIBERO's and DROID's requests have flat keys with a slash in them."""
    repack = transforms.RepackTransform({"observation/image": "image", "a": {"b/c": "d/e"}})
    assert repack({"image": 1, "d": {"e": 2}}) == {"observation/image": 1, "a": {"b/c": 2}}


def test_repack_names_all_missing_keys_at_once():
    repack = transforms.RepackTransform({"a": "x", "b": "y", "c": "z"})
    with pytest.raises(KeyError) as error:
        repack({"y": 0})
    assert str(error.value) == "sample: found ['y'], keys ['x', 'z'] are missing"
    assert isinstance(error.value, errors.UserError)


def test_inject_default_prompt_gives_way_to_a_prompt_of_the_sample():
    inject = transforms.InjectDefaultPrompt("default")
    assert inject({"prompt": "own"}) == {"prompt": "own"}
    assert inject({})["prompt"].shape == ()
    assert transforms.InjectDefaultPrompt(None)({}) == {}


@pytest.mark.parametrize("prompt", ["go", np.asarray("go")])
def test_tokenize_prompt_replaces_the_prompt(prompt):
    result = transforms.TokenizePrompt(FakeTokenizer())({"prompt": prompt, "state": 0})
    assert result.keys() == {"state", "tokenized_prompt", "tokenized_prompt_mask"}
    np.testing.assert_array_equal(result["tokenized_prompt"], [2, 0])


def test_tokenize_prompt_says_what_is_missing_or_wrong():
    with pytest.raises(ValueError, match="'prompt' is missing"):
        transforms.TokenizePrompt(FakeTokenizer())({"state": 0})
    with pytest.raises(ValueError, match="'state' is missing"):
        transforms.TokenizePrompt(FakeTokenizer(), discrete_state_input=True)({"prompt": "go"})
    with pytest.raises(ValueError, match="prompt: found int, expected one string"):
        transforms.TokenizePrompt(FakeTokenizer())({"prompt": 3})


def test_tokenize_fast_inputs_gives_four_arrays_and_keeps_the_actions():
    transform = transforms.TokenizeFASTInputs(FakeFastTokenizer())
    result = transform({"prompt": "go", "state": np.zeros(2), "actions": np.zeros((3, 2))})
    assert result.keys() == {
        "state",
        "actions",
        "tokenized_prompt",
        "tokenized_prompt_mask",
        "token_ar_mask",
        "token_loss_mask",
    }
    assert transform({"prompt": "go", "state": np.zeros(2)})["tokenized_prompt"][1] == 0


def test_extract_fast_actions_hands_over_integers():
    transform = transforms.ExtractFASTActions(FakeTokenizer(), action_horizon=3, action_dim=2)
    np.testing.assert_array_equal(transform({"actions": np.array([1.0, 2.0])})["actions"], np.full((3, 2), 3.0))


def test_prompt_from_task_looks_the_task_up_or_says_why_not():
    transform = transforms.PromptFromLeRobotTask({1: "fold the towel"})
    assert transform({"task_index": np.int64(1)})["prompt"] == "fold the towel"
    with pytest.raises(ValueError, match=r"found task_index=2, expected one of \[1\]"):
        transform({"task_index": 2})
    with pytest.raises(ValueError, match="'task_index' is missing"):
        transform({})


def test_pad_states_and_actions_fills_with_zeros_and_never_truncates():
    padded = transforms.PadStatesAndActions(4)({"state": np.ones(3), "actions": np.ones((2, 5))})
    np.testing.assert_array_equal(padded["state"], [1, 1, 1, 0])
    assert padded["actions"].shape == (2, 5)
    assert "actions" not in transforms.PadStatesAndActions(4)({"state": np.ones(3)})


def test_resize_images_keeps_the_proportions_of_every_image():
    result = transforms.ResizeImages(224, 224)({"image": {"a": np.full((480, 640, 3), 9, np.uint8)}})["image"]["a"]
    assert result.shape == (224, 224, 3)
    assert not result[:28].any()
    assert (result[28:196] == 9).all()
    assert not result[196:].any()


# Nested dictionaries -----------------------------------------------------------------------------------------------------

trees = st.recursive(
    st.integers(), lambda children: st.dictionaries(st.text("abc.", min_size=1, max_size=3), children, min_size=1)
).filter(lambda tree: isinstance(tree, dict))


@settings(max_examples=50, deadline=None)
@given(trees)
def test_unflatten_inverts_flatten(tree):
    assert transforms.unflatten_dict(transforms.flatten_dict(tree)) == tree


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}])
def test_unflatten_refuses_a_path_that_is_leaf_and_folder(flat):
    with pytest.raises(errors.DataError):
        transforms.unflatten_dict(flat)


def test_transform_dict_renames_removes_and_takes_the_first_match():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert transforms.transform_dict({"a/b": "x/y", "d": None}, tree) == {"a": {"c": 2}, "x": {"y": 1}}
    assert transforms.transform_dict({r"a/(.*)": r"e/\1", "a/b": None}, tree) == {"d": 3, "e": {"b": 1, "c": 2}}
    assert transforms.transform_dict({"a": "z"}, tree) == tree  # matches whole paths only
    assert tree == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize("patterns", [{"a/b": "a/c"}, {"a/.*": "same"}, {"d": "a"}])
def test_transform_dict_refuses_two_leaves_on_one_path(patterns):
    with pytest.raises(ValueError, match="path"):
        transforms.transform_dict(patterns, {"a": {"b": 1, "c": 2}, "d": 3})


def test_apply_tree_changes_only_selected_leaves_and_checks_when_strict():
    tree, selector = {"a": 1, "b": {"c": 2}}, {"b": {"c": 10}, "z": 0}
    assert transforms.apply_tree(tree, selector, lambda x, y: x + y) == {"a": 1, "b": {"c": 12}}
    with pytest.raises(errors.DataError, match=r"keys \['z'\] are missing"):
        transforms.apply_tree(tree, selector, lambda x, y: x + y, strict=True)


def test_images_resized_at_the_same_time_are_those_resized_one_by_one():
    rng = np.random.default_rng(0)
    images = {f"camera_{i}": rng.integers(0, 256, (48 + i, 64, 3), dtype=np.uint8) for i in range(3)}
    images["already"] = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    one_by_one = transforms.ResizeImages(28, 28)({"image": images, "state": 1})
    together = transforms.ResizeImages(28, 28, num_threads=3)({"image": images, "state": 1})
    assert list(together["image"]) == list(one_by_one["image"])
    for name, image in one_by_one["image"].items():
        np.testing.assert_array_equal(together["image"][name], image)
    with pytest.raises(ValueError, match="expected uint8"):
        transforms.ResizeImages(28, 28, num_threads=3)({"image": {"a": np.zeros((3, 4, 3)), "b": images["camera_0"]}})
