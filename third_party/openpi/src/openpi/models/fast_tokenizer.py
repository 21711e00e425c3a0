"""Tokens of pi0-FAST: prompt, state and actions in one sequence.

Also reads the actions out of the tokens that the model writes.
"""

from collections.abc import Sequence
import functools
import logging
import pathlib

import numpy as np
import sentencepiece

from openpi.models import fast_codec
from openpi.models.fast_codec import FastCodec
from openpi.models.prompt_text import TEXT_MODEL_FILE
from openpi.models.prompt_text import PromptFitter
from openpi.models.prompt_text import format_state
from openpi.models.prompt_text import load_sentencepiece
from openpi.models.prompt_text import locate_sentencepiece
from openpi.shared import errors

logger = logging.getLogger(__name__)

_NUM_RESERVED = 128
"""Number of the last ids of PaliGemma's vocabulary that actions do not use (the model's segmentation tokens)."""

_FAST_DIR = "fast"

_ANSWER_START = "Action: "
_ANSWER_END = "|"


class FASTTokenizer:
    """Tokenizes prompts, states and actions as pi0-FAST expects them.

    Action ids count down from `first_action_token` and replace the vocabulary's rarest words. The text model and the
    FAST processor are read on first use, so you need no download if you need no tokens.
    """

    def __init__(
        self,
        max_len: int = 256,
        fast_tokenizer_path: pathlib.Path | str = "physical-intelligence/fast",
        *,
        model_path: pathlib.Path | str | None = None,
        first_action_token: int | None = None,
    ) -> None:
        """Set the length of every result and the sources of both tokenizers.

        Args:
            max_len: Number of tokens of a result, at least 1.
            fast_tokenizer_path: A FAST processor: a folder, a URL, or a name on the Hugging Face hub.
            model_path: A SentencePiece model. None uses PaliGemma's, from the download cache.
            first_action_token: Token of FAST id 0. None uses the token of the released models.
        """
        self._max_len = max_len
        self._fast_tokenizer_path = fast_tokenizer_path
        self._model_path = model_path
        self._given_first_action_token = first_action_token
        self._fitter = PromptFitter()
        self._has_warned = False

    def files(self) -> dict[str, pathlib.Path]:
        """Return the local files that it reads, by name for `from_folder`."""
        config_path, bpe_path = fast_codec.locate(self._fast_tokenizer_path)
        return {
            TEXT_MODEL_FILE: locate_sentencepiece(self._model_path),
            f"{_FAST_DIR}/{fast_codec.CONFIG_FILE}": config_path,
            f"{_FAST_DIR}/{fast_codec.BPE_FILE}": bpe_path,
        }

    def from_folder(self, folder: pathlib.Path) -> "FASTTokenizer":
        """Return the same tokenizer, but reading the files of `folder`."""
        return FASTTokenizer(
            self._max_len,
            folder / _FAST_DIR,
            model_path=folder / TEXT_MODEL_FILE,
            first_action_token=self._given_first_action_token,
        )

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return load_sentencepiece(self._model_path)

    @functools.cached_property
    def _codec(self) -> FastCodec:
        return FastCodec.load(self._fast_tokenizer_path)

    @functools.cached_property
    def _start_mark(self) -> list[int]:
        return self._processor.encode(_ANSWER_START)

    @functools.cached_property
    def _end_mark(self) -> list[int]:
        return self._processor.encode(_ANSWER_END)

    @functools.cached_property
    def _action_tokens(self) -> range:
        """Tokens of the FAST ids, id 0 first."""
        first = self._given_first_action_token
        if first is None:
            first = self._processor.vocab_size() - 1 - _NUM_RESERVED
        tokens = range(first, first - self._codec.vocab_size, -1)
        taken = {0, self._processor.eos_id(), *self._start_mark, *self._end_mark}
        if tokens[-1] < 0 or not taken.isdisjoint(tokens):
            raise errors.ConfigError(
                f"FAST: the {len(tokens)} action tokens {tokens[-1]} to {first} overlap the tokens of text. Use a model "
                "with a larger vocab_size, or a FAST tokenizer with a smaller one"
            )
        return tokens

    def tokenize(
        self, prompt: str, state: np.ndarray, actions: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Convert prompt, state and (in training) actions to tokens.

        If a sequence is too long, the prompt loses its end. State, actions and end mark stay whole, and a warning says so
        once per prompt. Only actions that are too long by themselves lose their end, also with a warning.

        Args:
            prompt: An instruction. Case is ignored and "_" counts as a space.
            state: Normalized, unpadded state [number of dimensions].
            actions: Normalized actions [ah, ad], or None to leave the answer to the model.

        Returns:
            Four arrays [max_len], 0 after the end: token ids (int64), which of them are valid (bool), which see only
            earlier tokens (int64, 1 for the answer), and which the loss counts (bool, the answer).

        Raises:
            ConfigError: `max_len` cannot hold even the text around the prompt.
            DataError: The actions cannot be encoded.
        """
        text = prompt.strip().lower().replace("_", " ")
        answer = [] if actions is None else self._encode_answer(actions)
        # The answer has priority over the prompt.
        num_fixed = len(self._encode_prefix("", state)) + len(answer)
        room = self._max_len - len(answer)
        if answer and num_fixed > self._max_len:
            # No prompt is short enough for the whole answer. The part of it that fits is still a correct example.
            self._warn_of_long_actions(num_fixed)
            room = self._max_len
        prefix = self._fitter.encode(text, lambda text: self._encode_prefix(text, state), room)
        answer = answer[: self._max_len - len(prefix)]
        padding = [0] * (self._max_len - len(prefix) - len(answer))
        is_answer = np.asarray([0] * len(prefix) + [1] * len(answer) + padding, dtype=np.int64)  # [l]
        return (
            np.asarray(prefix + answer + padding, dtype=np.int64),
            np.arange(self._max_len) < len(prefix) + len(answer),
            is_answer,
            is_answer.astype(np.bool_),
        )

    def extract_actions(self, tokens: np.ndarray, action_horizon: int, action_dim: int) -> np.ndarray:
        """Return the actions that the model has written.

        Args:
            tokens: Token ids [number of tokens]. Those after the end mark are ignored.
            action_horizon: Number of actions.
            action_dim: Numbers per action.

        Returns:
            Normalized actions, float32 [action_horizon, action_dim].

        Raises:
            DataError: The tokens are not a chunk of this shape. There is no default, because zeros would be a motion.
        """
        answer = self._find_answer(tokens.tolist())
        unknown = [token for token in answer if token not in self._action_tokens]
        if unknown:
            raise errors.DataError(
                f"model output: found token {unknown[0]} among the actions, expected {self._action_tokens[-1]} to "
                f"{self._action_tokens[0]}"
            )
        return self._codec.decode([self._action_tokens[0] - token for token in answer], action_horizon, action_dim)

    def _encode_prefix(self, text: str, state: np.ndarray) -> list[int]:
        prefix = f"Task: {text}, State: {format_state(state)};\n"
        return [self._processor.bos_id(), *self._processor.encode(prefix)]

    def _encode_answer(self, actions: np.ndarray) -> list[int]:
        action_tokens = [self._action_tokens[i] for i in self._codec.encode(actions)]
        return [*self._start_mark, *action_tokens, *self._end_mark, self._processor.eos_id()]

    def _find_answer(self, tokens: list[int]) -> list[int]:
        """Return the tokens between the marks.

        The end token and the end of `tokens` count as end marks too.
        """
        start = _find(tokens, self._start_mark)
        if start is None:
            raise errors.DataError(
                f"model output: '{_ANSWER_START}' not found in {len(tokens)} tokens, so there are no actions"
            )
        answer = tokens[start + len(self._start_mark) :]
        for mark in (self._end_mark, [self._processor.eos_id()]):
            answer = answer[: _find(answer, mark)]
        return answer

    def _warn_of_long_actions(self, num_needed: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "actions cut at their end: state and actions take %d tokens without a prompt, expected at most "
                "max_token_len=%d. Increase max_token_len of the model",
                num_needed,
                self._max_len,
            )


def _find(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    """Return where `part` first occurs in `tokens`."""
    starts = range(len(tokens) - len(part) + 1)
    return next((i for i in starts if tokens[i : i + len(part)] == part), None)
