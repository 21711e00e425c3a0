import json
import logging
import pathlib
import pickle

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from openpi.models import tokenizer as _tokenizer
from openpi.shared import errors

GOLDEN_DIR = pathlib.Path(__file__).parents[2] / "golden"
MODEL_PATH = GOLDEN_DIR / "tokenizer_test.model"
CASES = json.loads((GOLDEN_DIR / "framework.json").read_text())["paligemma_tokenizer"]
EOS, BOS = 1, 2

debug_tokenizer = _tokenizer.for_vocab(512, 48)


def decode(tokenizer, tokens, mask):
    return tokenizer._processor.decode(tokens[mask][1:].tolist())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['prompt'][:9]!r}")
def test_tokens_are_the_golden_ones(case):
    state = None if case["state"] is None else np.asarray(case["state"])
    tokens, mask = _tokenizer.PaligemmaTokenizer(case["max_len"], MODEL_PATH).tokenize(case["prompt"], state)
    assert tokens.dtype == np.int64
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, case["mask"])
    if case["prompt"].count("put") > 48 and state is None:
        # The one case that does not fit: the golden text lost its closing newline, ours never does.
        np.testing.assert_array_equal(tokens[:-1], case["tokens"][:-1])
        newline = CASES[0]["tokens"][sum(CASES[0]["mask"]) - 1]
        assert tokens[-1] == newline
    else:
        np.testing.assert_array_equal(tokens, case["tokens"])


def test_one_golden_case_really_is_too_long():
    assert sum(case["prompt"].count("put") > 48 and case["state"] is None for case in CASES) == 1


@pytest.mark.parametrize(
    ("value", "bin_index"),
    [(-1.001, -1), (-1.0, 0), (-0.9921875, 1), (0.0, 128), (0.99, 254), (0.9921875, 255), (1.0, 255), (9.0, 255)],
)
def test_state_bins_have_the_documented_borders(value, bin_index):
    assert _tokenizer.discretize_state(np.array([value])) == [bin_index]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=120), st.sampled_from([None, np.linspace(-1.5, 1.5, 14)]), st.integers(110, 140))
def test_any_prompt_gives_the_asked_length_and_ends_as_the_model_expects(prompt, state, max_len):
    tokenizer = _tokenizer.for_vocab(512, max_len)
    tokens, mask = tokenizer.tokenize(prompt, state)
    assert tokens.shape == mask.shape == (max_len,)
    assert tokens[0] == BOS
    assert (mask == (np.arange(max_len) < mask.sum())).all()
    assert not tokens[~mask].any()
    text = decode(tokenizer, tokens, mask)
    assert text.endswith("\n" if state is None else " 255;\nAction: ")
    assert EOS not in tokens


@pytest.mark.parametrize("state", [None, np.zeros(14)])
def test_a_prompt_that_is_too_long_loses_its_end_only_and_a_warning_says_so_once(state, caplog):
    prompt = "pick up the red cube and place it in the tray " * 20
    tokenizer = _tokenizer.for_vocab(512, 100)
    with caplog.at_level(logging.WARNING):
        tokens, mask = tokenizer.tokenize(prompt, state)
        tokenizer.tokenize(prompt, state)
    assert mask.sum() >= 99
    text = decode(tokenizer, tokens, mask)
    assert "pick up the red cube and place it in the tray pick up" in text
    assert text.endswith("\n" if state is None else ";\nAction: ")
    assert ("State: 128 128" in text) == (state is not None)
    assert [record.getMessage().split(" to fit")[0][:10] for record in caplog.records] == ["prompt cut"]


def test_a_length_that_cannot_hold_the_state_is_refused():
    with pytest.raises(errors.ConfigError, match=r"the text around the prompt takes \d+ tokens, expected at most"):
        _tokenizer.for_vocab(512, 48).tokenize("go", np.zeros(14))


def test_underscores_and_newlines_count_as_spaces():
    expected, _ = debug_tokenizer.tokenize("fold the towel")
    np.testing.assert_array_equal(debug_tokenizer.tokenize("  fold_the\ntowel ")[0], expected)


def test_the_small_tokenizer_has_the_documented_ids_and_loses_no_text():
    processor = debug_tokenizer._processor
    assert (processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id()) == (0, 1, 2, 3)
    assert debug_tokenizer.vocab_size == 384
    text = "Xin ch\u00e0o 42, \u4f60\u597d!"
    assert processor.decode(processor.encode(text)) == text
    assert debug_tokenizer.tokenize("pick up the red cube and place it in the tray")[1].sum() < 24


def test_a_vocabulary_too_small_for_any_tokenizer_is_refused():
    with pytest.raises(errors.ConfigError, match="vocab_size 383 is too small, expected at least 384"):
        _tokenizer.for_vocab(383, 48)


def test_a_full_vocabulary_takes_paligemmas_model_from_the_cache_and_only_when_used(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("OPENPI_OFFLINE", "1")
    tokenizer = _tokenizer.for_vocab(_tokenizer.PALIGEMMA_VOCAB_SIZE, 48)
    expected_path = tmp_path / "big_vision" / "paligemma_tokenizer.model"
    with pytest.raises(errors.UserError) as error:
        tokenizer.tokenize("go")
    assert str(expected_path) in str(error.value)
    assert "OPENPI_DATA_HOME" in str(error.value)
    expected_path.parent.mkdir()
    expected_path.write_bytes(MODEL_PATH.read_bytes())
    np.testing.assert_array_equal(tokenizer.tokenize(CASES[0]["prompt"])[0], CASES[0]["tokens"])


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "broken.model").write_bytes(b"<html>")
    with pytest.raises(errors.DataError, match=r"broken.model: not a SentencePiece model"):
        _tokenizer.PaligemmaTokenizer(48, tmp_path / "broken.model").tokenize("go")


def test_a_used_tokenizer_can_be_pickled():
    copy = pickle.loads(pickle.dumps(debug_tokenizer))
    np.testing.assert_array_equal(copy.tokenize("go")[0], debug_tokenizer.tokenize("go")[0])
