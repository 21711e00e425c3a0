"""Convert text to token ids.

pi0 reads the prompt, pi0.5 also the robot's state, and pi0-FAST also the actions.
"""

import functools
import pathlib
from typing import Any

import numpy as np
import sentencepiece

from openpi.models.fast_tokenizer import FASTTokenizer
from openpi.models.prompt_text import PALIGEMMA_VOCAB_SIZE
from openpi.models.prompt_text import TEXT_MODEL_FILE
from openpi.models.prompt_text import PromptFitter
from openpi.models.prompt_text import discretize_state
from openpi.models.prompt_text import format_state
from openpi.models.prompt_text import load_sentencepiece
from openpi.models.prompt_text import locate_sentencepiece
from openpi.shared import errors

__all__ = [
    "DEBUG_MODEL_PATH",
    "PALIGEMMA_VOCAB_SIZE",
    "FASTTokenizer",
    "PaligemmaTokenizer",
    "discretize_state",
    "fast_for_vocab",
    "for_vocab",
]

DEBUG_MODEL_PATH = pathlib.Path(__file__).parent / "assets" / "debug_tokenizer.model"
"""A small SentencePiece model for small models. `assets/README.md` says how it was made."""


class PaligemmaTokenizer:
    """Tokenizes prompts as the pi0 family expects them.

    The SentencePiece model is read on first use, so you need no download if you need no tokens.
    """

    def __init__(self, max_len: int = 48, model_path: pathlib.Path | str | None = None) -> None:
        """Set the length of every result.

        Args:
            max_len: Number of tokens of a result, at least 1.
            model_path: A SentencePiece model. None uses PaliGemma's, from the download cache.
        """
        self._max_len = max_len
        self._model_path = model_path
        self._fitter = PromptFitter()

    def files(self) -> dict[str, pathlib.Path]:
        """Return the local files that it reads, by name for `from_folder`."""
        return {TEXT_MODEL_FILE: locate_sentencepiece(self._model_path)}

    def from_folder(self, folder: pathlib.Path) -> "PaligemmaTokenizer":
        """Return the same tokenizer, but reading the files of `folder`."""
        return PaligemmaTokenizer(self._max_len, folder / TEXT_MODEL_FILE)

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return load_sentencepiece(self._model_path)

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the SentencePiece model."""
        return self._processor.vocab_size()

    def tokenize(self, prompt: str, state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Convert a prompt, and for pi0.5 the state, to tokens.

        A prompt that is too long loses its end, and a warning says so once per prompt. The text after the prompt (state,
        answer mark, newline) is always whole, because the model starts its answer from there.

        Args:
            prompt: An instruction. "_" and newlines count as spaces.
            state: Normalized, unpadded state [number of dimensions], or None to leave it out of the text.

        Returns:
            Token ids (int64 [max_len], 0 after the end) and their mask (bool [max_len]).

        Raises:
            ConfigError: `max_len` cannot hold even the text around the prompt.
        """
        text = prompt.strip().replace("_", " ").replace("\n", " ")
        tokens = self._fitter.encode(text, lambda text: self._encode(text, state), self._max_len)
        padding = self._max_len - len(tokens)
        return (
            np.asarray(tokens + [0] * padding, dtype=np.int64),  # [l]
            np.asarray([True] * len(tokens) + [False] * padding, dtype=np.bool_),  # [l]
        )

    def _encode(self, text: str, state: np.ndarray | None) -> list[int]:
        if state is None:
            # The newline is encoded separately. Encoded together it could merge with the prompt's last piece.
            tokens = self._processor.encode(text) + self._processor.encode("\n")
        else:
            tokens = self._processor.encode(f"Task: {text}, State: {format_state(state)};\nAction: ")
        return [self._processor.bos_id(), *tokens]


def for_vocab(vocab_size: int, max_len: int) -> PaligemmaTokenizer:
    """Choose the tokenizer of a model by the size of its vocabulary.

    Args:
        vocab_size: Rows of the model's embedding table. A full table gets PaliGemma's tokenizer. A smaller table gets the
            small model that comes with this package, which needs no download.
        max_len: Number of tokens of a result.

    Raises:
        ConfigError: The vocabulary is smaller than the small tokenizer's.
    """
    if vocab_size >= PALIGEMMA_VOCAB_SIZE:
        return PaligemmaTokenizer(max_len)
    return PaligemmaTokenizer(max_len, _debug_model_for(vocab_size))


def fast_for_vocab(vocab_size: int, max_len: int, **options: Any) -> FASTTokenizer:
    """Choose the tokenizer of a pi0-FAST model by its vocabulary size.

    Args:
        vocab_size: Rows of the model's embedding table. A full table gets PaliGemma's tokenizer. A smaller table gets the
            small model that comes with this package, with the action tokens at the end of the table.
        max_len: Number of tokens of a result.
        **options: Further options of `FASTTokenizer`.

    Raises:
        ConfigError: The vocabulary is smaller than the small tokenizer's.
    """
    if vocab_size < PALIGEMMA_VOCAB_SIZE:
        options = {"model_path": _debug_model_for(vocab_size), "first_action_token": vocab_size - 1, **options}
    return FASTTokenizer(max_len, **options)


def _debug_model_for(vocab_size: int) -> pathlib.Path:
    """Return the path of the small model.

    The vocabulary must be large enough for it.
    """
    num_pieces = load_sentencepiece(DEBUG_MODEL_PATH).vocab_size()
    if vocab_size < num_pieces:
        raise errors.ConfigError(
            f"model: vocab_size {vocab_size} is too small, expected at least {num_pieces}, "
            "the pieces of the smallest tokenizer"
        )
    return DEBUG_MODEL_PATH
