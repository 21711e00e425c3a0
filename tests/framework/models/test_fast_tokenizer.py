import json
import logging
import pathlib
import pickle

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from openpi import transforms
from openpi.models import fast_codec
from openpi.models import tokenizer as _tokenizer
from openpi.shared import errors

HORIZON, DIM = 50, 14
SCALE, MIN_TOKEN = 10, -354
VOCAB_SIZE = 1024
NUM_FAST_IDS = 400
MAX_LEN = 250
EOS, BOS = 1, 2
STATE = np.linspace(-1.0, 1.0, DIM)


def make_chunk(seed, size=0.5):
    """A smooth chunk of normalised actions."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, HORIZON)[:, None]
    return size * (rng.uniform(-1, 1, DIM) + rng.uniform(-1, 1, DIM) * np.sin(3 * t + rng.uniform(0, 6, DIM)))


def coefficients_by_formula(actions):
    """The orthonormal cosine transform (type 2) as a sum, without a library."""
    num = len(actions)
    k, t = np.mgrid[:num, :num]
    basis = np.sqrt(2 / num) * np.cos(np.pi * (2 * t + 1) * k / (2 * num))
    basis[0] /= np.sqrt(2)
    return np.rint(SCALE * basis @ actions).astype(int)


def coefficient_text(actions):
    return "".join(chr(c - MIN_TOKEN) for c in coefficients_by_formula(actions).ravel())


def write_processor(folder, alphabet, num_ids=NUM_FAST_IDS):
    """Fit byte-pair encoding to some chunks and write it in the form of the published processor."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_ids, show_progress=False, initial_alphabet=alphabet, max_token_length=10000
    )
    bpe.train_from_iterator([coefficient_text(make_chunk(seed)) for seed in range(30)], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    config = {
        "action_dim": None,
        "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
        "min_token": MIN_TOKEN,
        "scale": SCALE,
        "time_horizon": None,
        "vocab_size": bpe.get_vocab_size(),
    }
    (folder / "processor_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def processor_dir(tmp_path_factory):
    return write_processor(tmp_path_factory.mktemp("fast"), pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def codec(processor_dir):
    return fast_codec.FastCodec.load(processor_dir)


@pytest.fixture
def tokenizer(processor_dir):
    return _tokenizer.fast_for_vocab(VOCAB_SIZE, MAX_LEN, fast_tokenizer_path=processor_dir)


def text_of(tokenizer, tokens):
    return tokenizer._processor.decode([int(t) for t in tokens])


def answer_of(tokenizer, actions):
    """What a perfect model writes: the answer, then zeros up to the most tokens it may write, as floats."""
    tokens, mask, ar_mask, _ = tokenizer.tokenize("go", STATE, actions)
    answer = tokens[mask & (ar_mask == 1)]
    return np.concatenate([answer, np.zeros(256 - len(answer))]).astype(np.float32)


# ---- the codec ----------------------------------------------------------------------------------------------------------


def test_ids_spell_the_rounded_cosine_coefficients_lowest_frequency_first(codec, processor_dir):
    actions = make_chunk(100)
    ids = codec.encode(actions)
    bpe = tokenizers.Tokenizer.from_file(str(processor_dir / "tokenizer.json"))
    assert bpe.decode(ids, skip_special_tokens=False) == coefficient_text(actions)
    assert ids == bpe.encode(coefficient_text(actions)).ids
    assert len(ids) < HORIZON * DIM / 3


def test_decoding_inverts_the_formula(codec):
    decoded = codec.decode(codec.encode(make_chunk(101)), HORIZON, DIM)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(coefficients_by_formula(decoded), coefficients_by_formula(make_chunk(101)))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_chunk_comes_back_up_to_the_rounding_of_its_coefficients(codec, data):
    horizon, dim = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 16))
    size = data.draw(st.sampled_from([0.01, 0.3, 1.0, 3.0]))
    actions = size * np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).uniform(-1, 1, (horizon, dim))
    decoded = codec.decode(codec.encode(actions), horizon, dim)
    # Each of `horizon` coefficients is off by half a step at most, and the transform keeps lengths.
    assert np.abs(decoded - actions).max() <= 0.5 / SCALE * np.sqrt(horizon) + 1e-5


def test_the_callers_actions_are_not_changed(codec):
    actions = make_chunk(102)
    before = actions.copy()
    codec.encode(actions)
    np.testing.assert_array_equal(actions, before)


def test_actions_beyond_the_smallest_coefficient_are_cut_with_a_warning(codec, caplog):
    actions = np.full((HORIZON, DIM), -9.0)  # the first coefficient is -9 * sqrt(50) * 10 = -636
    with caplog.at_level(logging.WARNING):
        decoded = codec.decode(codec.encode(actions), HORIZON, DIM)
        codec.encode(actions)
    assert [r.getMessage().split(",")[0] for r in caplog.records] == ["actions: normalized values range from -9 to -9"]
    np.testing.assert_allclose(decoded, MIN_TOKEN / SCALE / np.sqrt(HORIZON), rtol=1e-6)


def test_actions_that_the_encoding_has_no_bytes_for_are_refused_not_dropped(tmp_path):
    codec = fast_codec.FastCodec.load(write_processor(tmp_path, alphabet=[]))
    codec.encode(make_chunk(0))
    with pytest.raises(errors.DataError, match=r"coefficients from -?\d+ to \d+ are outside what this FAST tokenizer"):
        codec.encode(make_chunk(0, size=30.0))


@pytest.mark.parametrize("actions", [np.full((3, 2), np.nan), np.zeros(3), np.zeros((1, 3, 2))])
def test_actions_that_are_no_finite_chunk_are_refused(codec, actions):
    with pytest.raises(errors.DataError, match=r"actions: found shape \[.*% finite, expected \[horizon, dimensions\]"):
        codec.encode(actions)


def test_ids_that_are_no_chunk_are_refused(codec):
    ids = codec.encode(make_chunk(103))
    with pytest.raises(errors.DataError, match=r"hold \d+ coefficients, expected 50 x 14 = 700"):
        codec.decode(ids[:-1], HORIZON, DIM)
    with pytest.raises(errors.DataError, match=r"hold 700 coefficients, expected 50 x 7 = 350"):
        codec.decode(ids, HORIZON, 7)
    with pytest.raises(errors.DataError, match=r"found id 400, expected 0 to 399"):
        codec.decode([*ids, 400], HORIZON, DIM)
    half_a_character = codec._bpe.token_to_id("\u00c2")
    with pytest.raises(errors.DataError, match=r"are not a text of coefficients"):
        codec.decode([half_a_character, half_a_character], 1, 2)


# ---- where it is read ---------------------------------------------------------------------------------------------------


def test_the_published_processor_is_taken_from_the_download_cache(processor_dir, codec, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    cached_dir = tmp_path / "huggingface.co/physical-intelligence/fast/resolve/main"
    with pytest.raises(errors.UserError) as error:
        fast_codec.FastCodec.load("physical-intelligence/fast")
    assert str(cached_dir / "processor_config.json") in str(error.value)
    cached_dir.mkdir(parents=True)
    for path in processor_dir.iterdir():
        (cached_dir / path.name).write_bytes(path.read_bytes())
    for source in ("physical-intelligence/fast", "https://huggingface.co/physical-intelligence/fast/resolve/main/"):
        assert fast_codec.FastCodec.load(source).encode(make_chunk(0)) == codec.encode(make_chunk(0))
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    with pytest.raises(
        errors.UserError, match=r"mirror\.example/physical-intelligence/fast/resolve/main/processor_config"
    ):
        fast_codec.FastCodec.load("physical-intelligence/fast")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "not a FAST processor, processor_config.json and tokenizer.json not found"),
        ({"processor_config.json": "{}"}, "not a FAST processor, tokenizer.json not found"),
        (
            {"processor_config.json": "<html>", "tokenizer.json": ""},
            "processor_config.json: not a FAST processor, expected",
        ),
        ({"processor_config.json": '{"scale": 10}', "tokenizer.json": ""}, "KeyError: 'min_token'"),
        ({"processor_config.json": '{"scale": 0, "min_token": 0}', "tokenizer.json": ""}, "found scale 0"),
        ({"processor_config.json": '{"scale": 1, "min_token": 0}', "tokenizer.json": "{"}, "tokenizer.json: not a tok"),
    ],
)
def test_a_folder_that_is_no_processor_is_refused_with_the_reason(tmp_path, files, problem):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(errors.UserError) as error:
        fast_codec.FastCodec.load(tmp_path)
    assert problem in str(error.value)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(errors.MissingFileError, match=r"/nowhere/fast: no such folder, expected one with"):
        fast_codec.FastCodec.load("/nowhere/fast")


def test_nothing_is_read_before_it_is_needed():
    tokenizer = _tokenizer.FASTTokenizer(MAX_LEN, "/nowhere/fast", model_path="/nowhere/text.model")
    with pytest.raises(FileNotFoundError):
        tokenizer.tokenize("go", STATE)


# ---- the sequence -------------------------------------------------------------------------------------------------------


def test_without_actions_the_sequence_is_prompt_and_state(tokenizer):
    tokens, mask, ar_mask, loss_mask = tokenizer.tokenize("  Fold_the Towel ", STATE)
    assert [x.dtype for x in (tokens, mask, ar_mask, loss_mask)] == [np.int64, np.bool_, np.int64, np.bool_]
    assert {x.shape for x in (tokens, mask, ar_mask, loss_mask)} == {(MAX_LEN,)}
    assert tokens[0] == BOS
    bins = " ".join(map(str, _tokenizer.discretize_state(STATE)))
    assert text_of(tokenizer, tokens[mask]) == f"Task: fold the towel, State: {bins};\n"
    assert not tokens[~mask].any()
    assert not ar_mask.any()
    assert not loss_mask.any()


def test_newlines_in_a_prompt_are_kept_as_in_the_released_models(tokenizer):
    tokens, mask, _, _ = tokenizer.tokenize("a\nb", STATE)
    assert text_of(tokenizer, tokens[mask]).startswith("Task: a\nb, State: ")


def test_with_actions_the_answer_follows_and_only_it_is_learnt(tokenizer, codec):
    actions = make_chunk(7)
    prefix, prefix_mask, _, _ = tokenizer.tokenize("go", STATE)
    tokens, mask, ar_mask, loss_mask = tokenizer.tokenize("go", STATE, actions)
    num_prefix, num_tokens = prefix_mask.sum(), mask.sum()
    np.testing.assert_array_equal(tokens[:num_prefix], prefix[:num_prefix])
    answer = tokens[num_prefix:num_tokens].tolist()
    start, end = tokenizer._processor.encode("Action: "), tokenizer._processor.encode("|")
    assert answer[: len(start)] == start
    assert answer[-len(end) - 1 :] == [*end, EOS]
    assert [VOCAB_SIZE - 1 - t for t in answer[len(start) : -len(end) - 1]] == codec.encode(actions)
    expected = [0] * num_prefix + [1] * (num_tokens - num_prefix) + [0] * (MAX_LEN - num_tokens)
    np.testing.assert_array_equal(ar_mask, expected)
    np.testing.assert_array_equal(loss_mask, np.array(expected, dtype=bool))
    np.testing.assert_array_equal(mask, np.arange(MAX_LEN) < num_tokens)


def test_in_the_full_vocabulary_action_ids_count_down_from_below_the_last_128(processor_dir):
    tokenizer = _tokenizer.fast_for_vocab(_tokenizer.PALIGEMMA_VOCAB_SIZE, MAX_LEN, fast_tokenizer_path=processor_dir)
    small = tokenizer.__class__(MAX_LEN, processor_dir, model_path=_tokenizer.DEBUG_MODEL_PATH, first_action_token=2000)

    class FullProcessor:
        """PaliGemma's model as far as it matters here: the small one's pieces, and a vocabulary of full size."""

        def __getattr__(self, name):
            return getattr(small._processor, name)

        def vocab_size(self):
            return _tokenizer.PALIGEMMA_VOCAB_SIZE

    tokenizer.__dict__["_processor"] = FullProcessor()
    assert tokenizer._action_tokens == range(257_023, 257_023 - NUM_FAST_IDS, -1)
    np.testing.assert_allclose(
        tokenizer.extract_actions(answer_of(tokenizer, make_chunk(3)).astype(np.int32), HORIZON, DIM),
        make_chunk(3),
        atol=0.2,
    )


def test_action_tokens_that_meet_text_are_refused(processor_dir):
    with pytest.raises(errors.ConfigError, match=r"the 400 action tokens 100 to 499 overlap the tokens of text"):
        _tokenizer.fast_for_vocab(500, MAX_LEN, fast_tokenizer_path=processor_dir).tokenize("go", STATE, make_chunk(0))


def test_a_vocabulary_too_small_for_text_is_refused():
    with pytest.raises(errors.ConfigError, match="vocab_size 383 is too small, expected at least 384"):
        _tokenizer.fast_for_vocab(383, MAX_LEN)


@settings(max_examples=30, deadline=None)
@given(prompt=st.text(max_size=400), seed=st.integers(0, 1000))
def test_any_prompt_leaves_state_and_actions_whole(processor_dir, prompt, seed):
    tokenizer = _tokenizer.fast_for_vocab(VOCAB_SIZE, MAX_LEN, fast_tokenizer_path=processor_dir)
    tokens, mask, ar_mask, _ = tokenizer.tokenize(prompt, STATE, make_chunk(seed))
    assert tokens.shape == (MAX_LEN,)
    assert " 255;\n" in text_of(tokenizer, tokens[mask & (ar_mask == 0)])
    assert tokens[mask][-1] == EOS
    answer = tokens[mask & (ar_mask == 1)]
    np.testing.assert_allclose(tokenizer.extract_actions(answer, HORIZON, DIM), make_chunk(seed), atol=0.2)


@pytest.mark.parametrize("actions", [None, make_chunk(0)], ids=["prompt", "prompt and actions"])
def test_a_prompt_that_is_too_long_loses_its_end_only_and_a_warning_says_so_once(tokenizer, actions, caplog):
    prompt = "pick up the red cube and place it in the tray " * 20
    with caplog.at_level(logging.WARNING):
        tokens, mask, ar_mask, _ = tokenizer.tokenize(prompt, STATE, actions)
        tokenizer.tokenize(prompt, STATE, actions)
    assert mask.sum() >= MAX_LEN - 1
    prefix = text_of(tokenizer, tokens[mask & (ar_mask == 0)])
    assert prefix.startswith("Task: pick up the red cube")
    assert prefix.endswith(" 255;\n")
    assert [record.getMessage()[:10] for record in caplog.records] == ["prompt cut"]


def test_a_chunk_that_is_too_long_by_itself_keeps_the_prompt_and_says_how_long_it_is(tokenizer, caplog):
    rough = np.random.default_rng(0).uniform(-1, 1, (HORIZON, DIM))
    with caplog.at_level(logging.WARNING):
        tokens, mask, ar_mask, loss_mask = tokenizer.tokenize("go", STATE, rough)
        tokenizer.tokenize("go", STATE, rough)
    assert mask.all()
    assert text_of(tokenizer, tokens[ar_mask == 0]).startswith("Task: go, State: ")
    assert text_of(tokenizer, tokens[ar_mask == 0]).endswith(" 255;\n")
    np.testing.assert_array_equal(loss_mask, ar_mask == 1)
    (record,) = caplog.records
    assert record.getMessage().startswith("actions cut at their end: state and actions take ")
    long = _tokenizer.fast_for_vocab(VOCAB_SIZE, 1000, fast_tokenizer_path=tokenizer._fast_tokenizer_path)
    np.testing.assert_array_equal(long.tokenize("go", STATE, rough)[0][:MAX_LEN], tokens)


def test_a_length_that_cannot_hold_the_state_is_refused(processor_dir):
    tokenizer = _tokenizer.fast_for_vocab(VOCAB_SIZE, 20, fast_tokenizer_path=processor_dir)
    for actions in (None, make_chunk(0)):
        with pytest.raises(
            errors.ConfigError, match=r"the text around the prompt takes \d+ tokens, expected at most 20"
        ):
            tokenizer.tokenize("go", STATE, actions)


# ---- back to actions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["whole", "without |", "without the end token", "junk after |"])
def test_written_tokens_become_actions(tokenizer, codec, end):
    actions = make_chunk(11)
    answer = answer_of(tokenizer, actions).astype(np.int32)
    num = int((answer != 0).sum())
    assert answer[num - 1] == EOS
    if end == "without |":
        answer = np.delete(answer, num - 2)
    elif end == "without the end token":
        answer[num - 1] = 0
    elif end == "junk after |":
        answer[num - 1 :] = 17
    expected = codec.decode(codec.encode(actions), HORIZON, DIM)
    np.testing.assert_array_equal(tokenizer.extract_actions(answer, HORIZON, DIM), expected)


def test_tokens_that_are_no_actions_are_refused_and_never_become_zeros(tokenizer):
    answer = answer_of(tokenizer, make_chunk(12)).astype(np.int32)
    num_start = len(tokenizer._start_mark)
    with pytest.raises(errors.DataError, match=r"'Action: ' not found in 256 tokens"):
        tokenizer.extract_actions(np.roll(answer, -1), HORIZON, DIM)
    with pytest.raises(errors.DataError, match=r"found token 300 among the actions, expected 624 to 1023"):
        tokenizer.extract_actions(np.insert(answer, num_start, 300), HORIZON, DIM)
    with pytest.raises(errors.DataError, match=r"coefficients, expected 50 x 14 = 700"):
        tokenizer.extract_actions(np.delete(answer, num_start), HORIZON, DIM)


def test_the_transforms_of_the_model_carry_a_chunk_there_and_back(tokenizer, codec):
    actions = make_chunk(13)
    sample = {"prompt": np.asarray("Go"), "state": STATE, "actions": actions}
    inputs = transforms.TokenizeFASTInputs(tokenizer)(sample)
    assert set(inputs) == {
        "state",
        "actions",
        "tokenized_prompt",
        "tokenized_prompt_mask",
        "token_ar_mask",
        "token_loss_mask",
    }
    written = inputs["tokenized_prompt"][inputs["token_loss_mask"]].astype(np.float32)
    outputs = transforms.ExtractFASTActions(tokenizer, HORIZON, DIM)({"state": STATE, "actions": written})
    np.testing.assert_array_equal(outputs["actions"], codec.decode(codec.encode(actions), HORIZON, DIM))


def test_a_used_tokenizer_can_be_pickled(tokenizer):
    expected = tokenizer.tokenize("go", STATE, make_chunk(0))
    copy = pickle.loads(pickle.dumps(tokenizer))
    for ours, theirs in zip(copy.tokenize("go", STATE, make_chunk(0)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_processors_path_may_be_text_or_a_path(processor_dir):
    assert fast_codec.FastCodec.load(str(processor_dir)).vocab_size == NUM_FAST_IDS
    assert fast_codec.FastCodec.load(pathlib.Path(processor_dir)).vocab_size == NUM_FAST_IDS
