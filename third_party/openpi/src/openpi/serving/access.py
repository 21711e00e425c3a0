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
    """Knows the accepted keys; without any, everybody may enter."""

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        # Digests, so that comparing takes the same time for keys of any length and the keys are in no memory dump.
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._digests

    def allows(self, authorization: str | None) -> bool:
        """Test an Authorization header: `Api-Key <key>` as openpi's clients send it, or a browser's password."""
        if self.is_open:
            return True
        digest = _digest(_key_in(authorization or ""))
        # All are compared, so that the time does not tell which key was nearly met.
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419


def read_key_file(path: pathlib.Path) -> tuple[str, ...]:
    """Read API keys, one a line; empty lines and lines that begin with `#` are left out.

    Raises:
        MissingFileError: there is no such file.
        ConfigError: it holds no key, or one that is too short to be safe.
    """
    try:
        text = path.read_text()
    except OSError as e:
        raise MissingFileError(
            f"{path}: cannot read the API keys ({e.strerror}); make one with: {_NEW_KEY_COMMAND} > {path}"
        ) from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not a text file; expected API keys, one a line") from e
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or any(len(key) < _MIN_KEY_LENGTH for key in keys):
        found = "a key that is too short" if keys else "no key"
        raise ConfigError(
            f"{path}: found {found}, expected one a line of {_MIN_KEY_LENGTH} characters or more; "
            f"make one with: {_NEW_KEY_COMMAND} > {path}"
        )
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s: other users of this machine can read the API keys; chmod 600 it", path)
    return keys


def tls_context(cert: pathlib.Path | None, key: pathlib.Path | None) -> ssl.SSLContext | None:
    """Load a server's certificate chain and private key (PEM); None when neither is given.

    Raises:
        ConfigError: only one is given, or they cannot be used together.
        MissingFileError: a file is not there.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    if missing := [str(path) for path in (cert, key) if not path.is_file()]:
        raise MissingFileError(f"TLS: no such file: {', '.join(missing)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(
            f"TLS: {cert} and {key} cannot be used ({e}); expected a PEM certificate and its unencrypted key"
        ) from e
    return context


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server that listens at `host`."""
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
