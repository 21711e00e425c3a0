"""The parts that the tokenizers of all models share.

These are the text model, the state as text, and the handling of prompts that are too long.
"""

from collections.abc import Callable
import logging
import pathlib

import numpy as np
import sentencepiece

from openpi.shared import download
from openpi.shared import errors

logger = logging.getLogger(__name__)

PALIGEMMA_URL = "gs://big_vision/paligemma_tokenizer.model"

TEXT_MODEL_FILE = "text.model"
"""Name of a tokenizer's SentencePiece model in the tokenizer's folder."""

PALIGEMMA_VOCAB_SIZE = 257_152
"""Rows of the embedding table of the released models: text pieces, image locations and segments."""

_STATE_BIN_EDGES = np.linspace(-1.0, 1.0, 256 + 1)[:-1]
"""Left edges of 256 equal bins over the range of normalized states (formula: as pi0.5 was trained with)."""


def locate_sentencepiece(path: pathlib.Path | str | None) -> pathlib.Path:
    """Return the local file of a SentencePiece model.

    None means PaliGemma's, from the download cache.
    """
    return pathlib.Path(path) if path else download.maybe_download(PALIGEMMA_URL, gs={"token": "anon"})


def load_sentencepiece(path: pathlib.Path | str | None) -> sentencepiece.SentencePieceProcessor:
    """Read a SentencePiece model. None means PaliGemma's.

    Raises:
        DataError: The file is not a SentencePiece model.
    """
    path = locate_sentencepiece(path)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as e:
        raise errors.DataError(f"{path}: not a SentencePiece model") from e


def discretize_state(state: np.ndarray) -> np.ndarray:
    """Return the bin of each normalized number.

    Examples: less than -1.0 -> -1, -1.0 -> 0, 0.0 -> 128, 1.0 and more -> 255. Bin -1 is intentional: with quantile
    normalization one number in a hundred falls into it, and the released models were trained with it.
    """
    return np.digitize(state, _STATE_BIN_EDGES) - 1


def format_state(state: np.ndarray) -> str:
    """Write the bins of a normalized state as the models read them.

    The bins are separated by spaces.
    """
    return " ".join(map(str, discretize_state(state)))


class PromptFitter:
    """Cuts the end of prompts that are too long.

    A warning says so once per prompt. Only the prompt is cut, because the model starts its answer from the text after it.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def encode(self, text: str, encode: Callable[[str], list[int]], max_len: int) -> list[int]:
        """Encode as much of the beginning of `text` as fits.

        Args:
            text: A prompt.
            encode: Converts a prompt and the fixed text around it to tokens.
            max_len: Maximum number of tokens of the result.

        Raises:
            ConfigError: The fixed text alone is too long.
        """
        tokens = encode(text)
        if len(tokens) <= max_len:
            return tokens
        num_fixed = len(encode(""))
        if num_fixed > max_len:
            raise errors.ConfigError(
                f"tokenizer: the text around the prompt takes {num_fixed} tokens, expected at most {max_len}. "
                "Increase max_token_len of the model"
            )
        # Binary search: text of `fits` characters fits, text of `too_long` characters does not.
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if len(encode(text[:middle])) <= max_len:
                fits = middle
            else:
                too_long = middle
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(
                "prompt cut to its first %d of %d characters to fit %d tokens. Increase max_token_len of the model or "
                "shorten the prompt: %r",
                fits,
                len(text),
                max_len,
                text,
            )
        return encode(text[:fits])
