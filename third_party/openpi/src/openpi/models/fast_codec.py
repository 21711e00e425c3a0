"""FAST: a chunk of actions as a few ids - a cosine transform over time, rounded, then byte-pair encoded.

Reads the JSON files of a published FAST processor; the program that is published beside them is not needed.
Formulas: FAST, arXiv 2501.09747.
"""

from collections.abc import Sequence
import json
import logging
import os
import pathlib
import re

import numpy as np
import tokenizers

from openpi.shared import download
from openpi.shared import errors

logger = logging.getLogger(__name__)

CONFIG_FILE = "processor_config.json"
BPE_FILE = "tokenizer.json"

_HUB_ENV = "HF_ENDPOINT"
"""A mirror of the Hugging Face hub (its own libraries' name)."""
_HUB_URL = "https://huggingface.co"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_MAX_CHARACTER = 0xD7FF
"""Largest code point below the surrogates, which stand for no text."""


class FastCodec:
    """Turns normalised actions into FAST ids and back.

    Each coefficient of the transform becomes one character (0 is `min_coefficient`), lowest frequency of all dimensions
    first; the text of a chunk is what the byte-pair encoding works on.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, *, scale: float, min_coefficient: int) -> None:
        """Take the parts of a processor.

        Args:
            bpe: Byte-level byte-pair encoding of the coefficient characters.
            scale: Coefficients are multiplied by it before they are rounded, > 0.
            min_coefficient: The smallest coefficient that can be encoded.
        """
        self._bpe = bpe
        self._scale = scale
        self._min_coefficient = min_coefficient
        self._has_warned = False

    @classmethod
    def load(cls, source: pathlib.Path | str) -> "FastCodec":
        """Read a published processor.

        Args:
            source: A folder with `processor_config.json` and `tokenizer.json`; or its URL or name on the Hugging Face hub
                ("physical-intelligence/fast"), fetched into the download cache.

        Raises:
            MissingFileError: There is no such folder, or a file is missing in it.
            DataError: A file does not hold what a FAST processor's does.
        """
        config_path, bpe_path = locate(source)
        try:
            config = json.loads(config_path.read_text())
            scale, min_coefficient = float(config["scale"]), int(config["min_token"])
        except (ValueError, TypeError, KeyError) as e:
            problem = f"{type(e).__name__}: {e}"
            raise errors.DataError(
                f"{config_path}: no FAST processor, expected 'scale' and 'min_token' ({problem})"
            ) from e
        if scale <= 0:
            raise errors.DataError(f"{config_path}: found scale {scale:g}, expected more than 0")
        try:
            bpe = tokenizers.Tokenizer.from_file(str(bpe_path))
        except Exception as e:  # the library raises no narrower class
            raise errors.DataError(f"{bpe_path}: not a tokenizer's JSON file ({e})") from e
        return cls(bpe, scale=scale, min_coefficient=min_coefficient)

    @property
    def vocab_size(self) -> int:
        """Number of ids: an id is at least 0 and less than this."""
        return self._bpe.get_vocab_size()

    def encode(self, actions: np.ndarray) -> list[int]:
        """Turn a chunk of actions into ids.

        Args:
            actions: Normalised actions [h, d], most of them between -1 and 1.

        Raises:
            DataError: The actions have another shape or are not finite, or the encoding was fitted to smaller ones.
        """
        if actions.ndim != 2 or not np.isfinite(actions).all():
            raise errors.DataError(
                f"actions: found shape {list(actions.shape)}, {np.isfinite(actions).mean():.0%} finite; expected [horizon, "
                "dimensions], all finite"
            )
        coefficients = np.rint(_cosines(actions) * self._scale)  # [h, d]
        characters = coefficients - self._min_coefficient
        encodable = np.clip(characters, 0, _MAX_CHARACTER).astype(np.int64)
        if not self._has_warned and (encodable != characters).any():
            self._has_warned = True
            logger.warning(
                "actions: normalised values reach from %.3g to %.3g, farther than FAST can encode, and were cut; look for "
                "outliers in the data and tiny ranges in the norm stats",
                actions.min(),
                actions.max(),
            )
        text = "".join(map(chr, encodable.ravel()))
        ids = self._bpe.encode(text, add_special_tokens=False).ids
        if self._bpe.decode(ids, skip_special_tokens=False) != text:
            raise errors.DataError(
                f"actions: coefficients from {coefficients.min():g} to {coefficients.max():g} lie outside what this FAST "
                "tokenizer was fitted to; check the norm stats or fit another one"
            )
        return ids

    def decode(self, ids: Sequence[int], action_horizon: int, action_dim: int) -> np.ndarray:
        """Turn ids into actions, float32 [action_horizon, action_dim].

        Raises:
            DataError: The ids do not stand for such a chunk.
        """
        strange = [i for i in ids if not 0 <= i < self.vocab_size]
        if strange:
            raise errors.DataError(f"FAST: found id {strange[0]}, expected 0 to {self.vocab_size - 1}")
        text = self._bpe.decode(list(ids), skip_special_tokens=False)
        if "\N{REPLACEMENT CHARACTER}" in text:
            raise errors.DataError(f"FAST: the {len(ids)} ids are not a text of coefficients")
        if len(text) != action_horizon * action_dim:
            raise errors.DataError(
                f"FAST: the {len(ids)} ids hold {len(text)} coefficients, expected {action_horizon} x {action_dim} = "
                f"{action_horizon * action_dim}"
            )
        coefficients = np.asarray([ord(c) for c in text], dtype=np.float64) + self._min_coefficient
        coefficients = coefficients.reshape(action_horizon, action_dim)
        return _cosines(coefficients / self._scale, inverse=True).astype(np.float32)


def _cosines(x: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    """Cosine transform (orthonormal DCT-II) of [h, d] along time, or its inverse."""
    from scipy import fft  # 0.2 s of every start, and only pi0-FAST needs it

    return (fft.idct if inverse else fft.dct)(x, axis=0, norm="ortho")


def locate(source: pathlib.Path | str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the local paths of a processor's two files."""
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        missing = [name for name in (CONFIG_FILE, BPE_FILE) if not (folder / name).is_file()]
        if missing:
            raise errors.MissingFileError(f"{folder}: no FAST processor, {' and '.join(missing)} not found in it")
        return folder / CONFIG_FILE, folder / BPE_FILE
    if "://" in str(source):
        url = str(source).rstrip("/")
    elif _HUB_NAME.fullmatch(str(source)):
        hub = os.environ.get(_HUB_ENV, _HUB_URL).rstrip("/")
        url = f"{hub}/{source}/resolve/main"
    else:
        raise errors.MissingFileError(f"{source}: no such folder, expected one with {CONFIG_FILE} and {BPE_FILE}")
    return download.maybe_download(f"{url}/{CONFIG_FILE}"), download.maybe_download(f"{url}/{BPE_FILE}")
