"""Who may use a policy server: API keys and TLS."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import pathlib
import ssl
import stat

from openpi.shared.errors import ConfigError
from openpi.shared.errors import MissingFileError

logger = logging.getLogger(__name__)

# 16 characters of base64 are 96 bits: out of reach of guessing over a network.
_MIN_KEY_LENGTH = 16

_NEW_KEY_COMMAND = "python -c 'import secrets; print(secrets.token_urlsafe())'"


class KeyCheck:
    """Checks API keys. Without any keys, everybody may enter."""

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        # Digests take the same time to compare for keys of any length, and they keep the keys out of memory dumps.
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def is_open(self) -> bool:
        """Whether clients need no key."""
        return not self._digests

    def allows(self, authorization: str | None) -> bool:
        """Return whether an Authorization header holds an accepted key.

        The header is `Api-Key <key>`, as openpi's clients send it, or a browser's Basic header with the key as password.
        """
        if self.is_open:
            return True
        digest = _digest(_key_in(authorization or ""))
        # All keys are compared, so that the time does not show which one nearly matched.
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419


def read_key_file(path: pathlib.Path) -> tuple[str, ...]:
    """Read API keys from a file, one per line.

    Empty lines and lines that begin with `#` are skipped.

    Raises:
        MissingFileError: The file cannot be read.
        ConfigError: The file holds no key, or a key that is too short to be safe.
    """
    try:
        text = path.read_text()
    except OSError as e:
        raise MissingFileError(
            f"{path}: cannot read the API keys ({e.strerror}). Make one with: {_NEW_KEY_COMMAND} > {path}"
        ) from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not a text file, expected API keys, one per line") from e
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or any(len(key) < _MIN_KEY_LENGTH for key in keys):
        found = "a key that is too short" if keys else "no key"
        raise ConfigError(
            f"{path}: found {found}, expected one per line, of {_MIN_KEY_LENGTH} characters or more. "
            f"Make one with: {_NEW_KEY_COMMAND} > {path}"
        )
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s: other users of this machine can read the API keys. Run: chmod 600 %s", path, path)
    return keys


def tls_context(cert: pathlib.Path | None, key: pathlib.Path | None) -> ssl.SSLContext | None:
    """Load a server's certificate chain and private key (PEM).

    Returns:
        The context of an encrypted server, or None when neither file is given.

    Raises:
        ConfigError: Only one file is given, or the two cannot be used together.
        MissingFileError: A file does not exist.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("TLS: found one of --tls-cert and --tls-key, expected both")
    if missing := [str(path) for path in (cert, key) if not path.is_file()]:
        raise MissingFileError(f"TLS: no such file: {', '.join(missing)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(
            f"TLS: {cert} and {key} cannot be used ({e}), expected a PEM certificate and its unencrypted key"
        ) from e
    return context


def is_loopback(host: str) -> bool:
    """Return whether a server at `host` is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key_in(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "api-key":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
