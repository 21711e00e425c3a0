"""Hide secrets in what a person is going to publish.

Settings are hidden by their names, after parsing. Log lines have no structure, so they are searched for what looks like a
secret, and are cut to a length that keeps the search fast.
"""

from collections.abc import Iterator
import os
from pathlib import Path
import re
from typing import Any

HIDDEN = "[hidden]"
SECRET_VARIABLES = ("HF_TOKEN", "REALMAN_API_KEY", "WANDB_API_KEY")
"""Variables of which only their presence is said, and whose values are hidden wherever they occur."""

MAX_LINE = 400
"""Characters that are kept of a line."""

_SECRET_NAMES = frozenset(
    [
        "apikey",
        "auth",
        "authorization",
        "bearer",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "key",
        "pass",
        "passphrase",
        "passwd",
        "password",
        "passwords",
        "psk",
        "pwd",
        "secret",
        "secrets",
        "sig",
        "signature",
        "token",
        "tokens",
    ]
)
_KEYS_OF = frozenset(["access", "api", "private", "secret", "ssh"])
"""What comes before the word "keys" where these are secrets. Other keys are names of columns."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_URL = re.compile(r"\b(?P<scheme>[a-z][a-z0-9+.-]{1,20})://(?P<rest>\S+)", re.IGNORECASE)
_HEADER = re.compile(r"\b(?P<name>(?:proxy-)?authorization|cookie)\b.*", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"""(?P<name>[\w.-]{0,40}(?:token|passw|passphrase|pwd|secret|credential|psk|key|cookie)[\w.-]{0,20})"""
    r"""(?P<gap>["']?\s*[=:]\s*|\s+)(?P<value>\S.*)""",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(?P<name>bearer|basic|api-key)\s+\S+", re.IGNORECASE)
_OPAQUE = re.compile(r"\b(?:hf|sk|ghp|wandb)_[\w-]{4,}|[A-Za-z0-9+=_]{32,}")


def is_secret_name(name: str) -> bool:
    """Return whether the last word of a name means a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    if words[-1] == "keys":
        return len(words) == 1 or words[-2] in _KEYS_OF
    return words[-1] in _SECRET_NAMES


def settings(value: Any, name: str = "") -> Iterator[str]:
    """Yield `name = value` for every leaf, with secrets hidden."""
    if isinstance(value, dict):
        for key, entry in value.items():
            place = f"{name}.{key}" if name else str(key)
            if is_secret_name(str(key)):
                yield f"{place} = {HIDDEN}"
            else:
                yield from settings(entry, place)
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        for index, entry in enumerate(value):
            yield from settings(entry, f"{name}[{index}]")
    else:
        yield f"{name} = {line(repr(value))}"


def line(text: str) -> str:
    """Hide what looks like a secret in one line.

    A line over `MAX_LINE` characters is cut.
    """
    text = text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}... ({len(text)} characters)"
    for name in SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, HIDDEN)

    text = _URL.sub(_address, text)
    text = _HEADER.sub(rf"\g<name>: {HIDDEN}", text)
    text = _ASSIGNED.sub(_assigned, text)
    text = _SCHEME.sub(rf"\g<name> {HIDDEN}", text)
    text = _OPAQUE.sub(HIDDEN, text)

    return text.replace(home, "~") if (home := _home()) != "/" else text


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:  # a container's user may have none
        return "/"


def _address(match: re.Match[str]) -> str:
    """Keep scheme and host of an address with a login or query."""
    rest = match["rest"]
    # A password may contain a slash, so the login ends at the last "@".
    host, *path = re.split(r"(?=[/?#;])", rest.rpartition("@")[2], maxsplit=1)
    if "@" not in rest and not re.search(r"[?=&;]", rest):
        return match.group()
    login = f"{HIDDEN}@" if "@" in rest else ""
    return f"{match['scheme']}://{login}{host}{'/' + HIDDEN if path else ''}"


def _assigned(match: re.Match[str]) -> str:
    # "--api-key VALUE" has only a space, and so has plain text: a name that is a flag or a setting is meant.
    is_setting = match["gap"].strip() or match["name"].startswith("-")
    return f"{match['name']}{match['gap']}{HIDDEN}" if is_setting and is_secret_name(match["name"]) else match.group()
