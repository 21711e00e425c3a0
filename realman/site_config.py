"""The robot site's settings, a frozen dataclass read from `site.toml`, and the robot that they name.

`examples/realman/site.example.toml` shows every key; units are in the names. Secrets are not in the file: an API key, where
the server asks for one, comes from the environment variable REALMAN_API_KEY.
"""

import dataclasses
import difflib
from pathlib import Path
import tomllib
from typing import Any, TypeVar, get_args, get_type_hints

from realman.errors import SiteError
from realman.robot import Robot
from realman.safety import SafetySettings

ROBOTS = ("sim", "rm65")
"""Robots that a site may name."""

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Where the policy server is and how long to wait for it."""

    host: str = "127.0.0.1"
    port: int = 8000
    connect_timeout_s: float = 30.0
    """How long to wait for the server to come up, s."""
    reply_timeout_s: float = 30.0
    """How long one prediction may take before the run is stopped, s."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise SiteError(f"server: 'port' is {self.port}; expected 1..65535")
        for name in ("connect_timeout_s", "reply_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SiteError(f"server: '{name}' is {getattr(self, name)}; expected a finite time greater than 0 s")


@dataclasses.dataclass(frozen=True)
class SimSettings:
    """The simulated robot."""

    task_seed: int = 0
    """Which scene: object poses and start pose are drawn from it."""
    realtime: bool = False
    """Keep wall-clock time, as real arms do, instead of running as fast as possible."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One robot with its server and limits."""

    robot: str = "sim"
    """'sim' (two simulated arms) or 'rm65' (the real ones)."""
    prompt: str | None = None
    """Task text sent to the policy; None leaves it to the server's default."""
    server: ServerSettings = dataclasses.field(default_factory=ServerSettings)
    safety: SafetySettings = dataclasses.field(default_factory=SafetySettings)
    sim: SimSettings = dataclasses.field(default_factory=SimSettings)

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise SiteError(f"site: 'robot' is '{self.robot}'; expected one of {', '.join(ROBOTS)}")

    @property
    def is_simulated(self) -> bool:
        """Whether nothing real can move."""
        return self.robot == "sim"


SIM_SITE = Site(
    # What the simulated cell is for; realman.sim.task says the same.
    prompt="pick up the cube and place it in the tray",
    safety=SafetySettings(max_joint_speed_deg_s=225.0, max_first_jump_deg=360.0, max_limit_ticks=1_000_000),
)
"""The site when no file is given: a simulated robot, where the whole speed is free and a lost policy harms nothing."""


def open_robot(site: Site) -> Robot:
    """Make the robot that the site names; it is not connected yet.

    Raises:
        SiteError: The robot is not available in this installation.
    """
    if site.robot == "rm65":
        raise SiteError("site: robot = 'rm65' is not available yet in this version; use robot = 'sim'")
    try:
        from realman.sim.robot import SimRobot
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] != "mujoco":
            raise
        raise SiteError("site: robot = 'sim' needs the package 'mujoco'; install realman-openpi[sim]") from e
    return SimRobot(task_seed=site.sim.task_seed)


def load_site(path: Path) -> Site:
    """Read `site.toml`.

    Raises:
        SiteError: No such file, not TOML, an unknown key (with the nearest known one), a wrong type or value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise SiteError(f"{path}: no such file; copy examples/realman/site.example.toml") from e
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise SiteError(f"{path}: cannot be read as TOML ({e})") from e
    try:
        return _from_table(Site, table, "")
    except SiteError as e:
        raise SiteError(f"{path}: {e}") from e


def _from_table(cls: type[_T], table: dict[str, Any], prefix: str) -> _T:
    """Build a dataclass from a TOML table; `prefix` is the place in the file, for messages."""
    hints = get_type_hints(cls)
    unknown = [_unknown_key(key, list(hints), prefix) for key in table if key not in hints]
    if unknown:
        raise SiteError("; ".join(unknown))
    return cls(**{key: _convert(value, hints[key], prefix + key) for key, value in table.items()})


def _unknown_key(key: str, known: list[str], prefix: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key '{prefix}{key}', {hint}"


def _convert(value: Any, hint: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise SiteError(f"'{place}' is {value!r}; expected a table [{place}]")
        return _from_table(hint, value, f"{place}.")  # type: ignore[arg-type]
    accepted = get_args(hint) or (hint,)
    if float in accepted and type(value) is int:
        return float(value)
    # An exact comparison: bool is an int in Python, and `port = true` is a slip.
    if type(value) not in accepted:
        names = " or ".join(t.__name__ for t in accepted if t is not type(None))
        raise SiteError(f"'{place}' is {value!r}; expected {names}")
    return value
