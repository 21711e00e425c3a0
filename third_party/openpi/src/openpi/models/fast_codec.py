"""FAST: encode a chunk of actions as a few ids.

The steps are a cosine transform over time, rounding, and byte-pair encoding. Reads the JSON files of a published FAST
processor. The program that is published with them is not needed. Formulas: FAST, arXiv 2501.09747.
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
"""Address of a mirror of the Hugging Face hub. The hub's own libraries read this variable too."""
_HUB_URL = "https://huggingface.co"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_MAX_CHARACTER = 0xD7FF
"""Largest code point below the surrogates, which are not characters."""


class FastCodec:
    """Converts normalized actions to FAST ids and back.

    Each coefficient of the transform becomes one character, and `min_coefficient` is character 0. The lowest frequency
    of all dimensions comes first. The byte-pair encoding works on the text of a chunk.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, *, scale: float, min_coefficient: int) -> None:
        """Use the parts of a processor.

        Args:
            bpe: Byte-level byte-pair encoding of the coefficient characters.
            scale: Factor of the coefficients before rounding, > 0.
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
            source: A folder with `processor_config.json` and `tokenizer.json`, or its URL or name on the Hugging Face hub
                ("physical-intelligence/fast"). Remote files go into the download cache.

        Raises:
            MissingFileError: The folder does not exist or a file is missing in it.
            DataError: A file is not part of a FAST processor.
        """
        # The numbers of the transform.
        config_path, bpe_path = locate(source)
        try:
            config = json.loads(config_path.read_text())
            scale, min_coefficient = float(config["scale"]), int(config["min_token"])
        except (ValueError, TypeError, KeyError) as e:
            problem = f"{type(e).__name__}: {e}"
            raise errors.DataError(
                f"{config_path}: not a FAST processor, expected 'scale' and 'min_token' ({problem})"
            ) from e
        if scale <= 0:
            raise errors.DataError(f"{config_path}: found scale {scale:g}, expected more than 0")
        # The byte-pair encoding.
        try:
            bpe = tokenizers.Tokenizer.from_file(str(bpe_path))
        except Exception as e:  # the library raises no narrower class
            raise errors.DataError(f"{bpe_path}: not a tokenizer's JSON file ({e})") from e
        return cls(bpe, scale=scale, min_coefficient=min_coefficient)

    @property
    def vocab_size(self) -> int:
        """Number of ids, which start at 0."""
        return self._bpe.get_vocab_size()

    def encode(self, actions: np.ndarray) -> list[int]:
        """Convert a chunk of actions to ids.

        Args:
            actions: Normalized actions [ah, ad], most of them between -1 and 1.

        Raises:
            DataError: The actions have another shape, are not finite, or are larger than the encoding was fitted to.
        """
        if actions.ndim != 2 or not np.isfinite(actions).all():
            raise errors.DataError(
                f"actions: found shape {list(actions.shape)}, {np.isfinite(actions).mean():.0%} finite, expected [horizon, "
                "dimensions], all finite"
            )
        # Rounded coefficients become characters. Those that have none are cut to the nearest.
        coefficients = np.rint(_cosines(actions) * self._scale)  # [ah, ad], frequency instead of time
        characters = coefficients - self._min_coefficient  # [ah, ad]
        encodable = np.clip(characters, 0, _MAX_CHARACTER).astype(np.int64)
        if not self._has_warned and (encodable != characters).any():
            self._has_warned = True
            logger.warning(
                "actions: normalized values range from %.3g to %.3g, more than FAST can encode, and were cut. Look for "
                "outliers in the data and tiny ranges in the norm stats",
                actions.min(),
                actions.max(),
            )
        # An encoding that does not decode to the same text has met characters that it does not know.
        text = "".join(map(chr, encodable.ravel()))  # ah * ad characters
        ids = self._bpe.encode(text, add_special_tokens=False).ids
        if self._bpe.decode(ids, skip_special_tokens=False) != text:
            raise errors.DataError(
                f"actions: coefficients from {coefficients.min():g} to {coefficients.max():g} are outside what this FAST "
                "tokenizer was fitted to. Check the norm stats or fit another tokenizer"
            )
        return ids

    def decode(self, ids: Sequence[int], action_horizon: int, action_dim: int) -> np.ndarray:
        """Convert ids to actions, float32 [action_horizon, action_dim].

        Raises:
            DataError: The ids do not encode a chunk of this shape.
        """
        unknown = [i for i in ids if not 0 <= i < self.vocab_size]
        if unknown:
            raise errors.DataError(f"FAST: found id {unknown[0]}, expected 0 to {self.vocab_size - 1}")
        # The text must be exactly one character per number of the chunk.
        text = self._bpe.decode(list(ids), skip_special_tokens=False)
        if "\N{REPLACEMENT CHARACTER}" in text:
            raise errors.DataError(f"FAST: the {len(ids)} ids are not a text of coefficients")
        if len(text) != action_horizon * action_dim:
            raise errors.DataError(
                f"FAST: the {len(ids)} ids hold {len(text)} coefficients, expected {action_horizon} x {action_dim} = "
                f"{action_horizon * action_dim}"
            )
        coefficients = np.asarray([ord(c) for c in text], dtype=np.float64) + self._min_coefficient  # [ah * ad]
        coefficients = coefficients.reshape(action_horizon, action_dim)  # [ah, ad]
        return _cosines(coefficients / self._scale, inverse=True).astype(np.float32)


def _cosines(x: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    """Apply the cosine transform (orthonormal DCT-II) along time, or its inverse."""
    from scipy import fft  # takes 0.2 s, and only pi0-FAST needs it

    return (fft.idct if inverse else fft.dct)(x, axis=0, norm="ortho")


def locate(source: pathlib.Path | str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the local paths of a processor's two files."""
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        missing = [name for name in (CONFIG_FILE, BPE_FILE) if not (folder / name).is_file()]
        if missing:
            raise errors.MissingFileError(f"{folder}: not a FAST processor, {' and '.join(missing)} not found in it")
        return folder / CONFIG_FILE, folder / BPE_FILE
    if "://" in str(source):
        url = str(source).rstrip("/")
    elif _HUB_NAME.fullmatch(str(source)):
        hub = os.environ.get(_HUB_ENV, _HUB_URL).rstrip("/")
        url = f"{hub}/{source}/resolve/main"
    else:
        raise errors.MissingFileError(f"{source}: no such folder, expected one with {CONFIG_FILE} and {BPE_FILE}")
    return download.maybe_download(f"{url}/{CONFIG_FILE}"), download.maybe_download(f"{url}/{BPE_FILE}")
