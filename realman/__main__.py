"""The command `realman`: `realman COMMAND [flags]`, or `python -m realman COMMAND [flags]`.

A command's module is imported only when the command is called. So `realman client` starts without the packages of
`realman convert`, which a robot PC does not have.
"""

import dataclasses
import difflib
import importlib
import importlib.metadata
import sys

import realman
from realman import _search_path

_search_path.put_own_first()  # before anything that is not of the standard library

from realman import cli  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its module has `main` and its flags `Args`."""

    module: str
    help: str
    extra: str | None = None
    """The extra of the package that brings what the module imports. None: the base install has it."""


GROUPS: dict[str, dict[str, Command]] = {
    "data": {
        "sample": Command("realman.robots.sim.record", "Record simulated demonstrations to try the rest on", "sim"),
        "convert": Command("realman.data.convert", "Convert recordings to a LeRobot v2.1 dataset", "data"),
        "inspect": Command("realman.data.inspection.command", "Report problems of recordings or a dataset", "data"),
        "verify": Command("realman.data.verify.command", "Compare a dataset with its recordings", "data"),
    },
    "robot": {
        "offline": Command("realman.evaluation.offline_command", "Compare a policy with a recording", "data"),
        "client": Command("realman.station.client_command", "Run a policy on the robot"),
        "emulator": Command("realman.robots.emulator.command", "Emulate two arm controllers for the vendor's SDK"),
    },
    "help": {
        "demo": Command("realman.demo", "Run every stage on simulated recordings", "train"),
        "support": Command("realman.station.support", "Collect what a bug report needs in one file"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

_WRONG_USE = 2


def main() -> None:
    """Run the command that `sys.argv` names, and exit with its code."""
    name, *flags = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_listing())
        sys.exit(0)
    if name == "--version":
        sys.stdout.write(f"realman-openpi {realman.__version__}\n")
        sys.exit(0)
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean 'realman {nearest[0]}'?" if nearest else "'realman --help' lists the commands"
        cli.print_error(f"realman: there is no command '{name}'. {hint}")
        sys.exit(_WRONG_USE)
    command = COMMANDS[name]
    _check_client(name)
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as e:
        # A module of ours that is missing is a fault of ours, not a package to install.
        if command.extra is None or e.name is None or e.name.split(".")[0] in ("realman", "openpi"):
            raise
        package, remedy = e.name.partition(".")[0], f"pip install 'realman-openpi[{command.extra}]'"
        cli.print_error(f"realman {name}: the package '{package}' is not installed. Install it: {remedy}")
        sys.exit(1)
    sys.argv = [f"realman {name}", *flags]
    cli.run(module.main, module.Args, prog=f"realman {name}")


def _check_client(name: str) -> None:
    """Refuse PyPI's package of the same name, installed over ours."""
    try:
        found = importlib.metadata.version("openpi-client")
    except importlib.metadata.PackageNotFoundError:
        # Run from the source folders.
        return
    if not found.endswith("+realman"):
        remedy = "Install third_party/openpi/packages/openpi-client of this project again"
        cli.print_error(f"realman {name}: found openpi-client {found}, expected this project's own. {remedy}")
        sys.exit(1)


def _listing() -> str:
    lines = ["usage: realman COMMAND [flags]      (realman COMMAND --help lists the flags)", ""]
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<10}{command.help}" for name, command in commands.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
