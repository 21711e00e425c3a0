"""Answer an old module path with its new one, until 0.3.

`realman/` had 34 entries at its top until 0.1. Python asks this finder only for modules that nothing else has found.
"""

import importlib.abc
import importlib.machinery
import shlex
import sys
import types

_ROOMS = {
    "data": ("raw", "checks", "dataset", "convert", "verify"),
    "robots": ("robot", "rm65", "emulator", "sim", "replay", "cameras"),
    "runtime": ("client", "chunks", "control", "safety", "workspace", "watchdogs", "steering", "recording"),
    "evaluation": ("seams", "metrics", "plots"),
    "station": ("site_config", "toml_config"),
}
MOVED = {f"realman.{name}": f"realman.{room}.{name}" for room, names in _ROOMS.items() for name in names} | {
    "realman.doctor": "realman.data.inspection",
    "realman.desk": "realman.station",
    "realman.offline": "realman.evaluation.open_loop",
}
"""Old module path -> new one, of version 0.1 and 0.2."""

COMMANDS = {
    "realman.convert": "convert",
    "realman.doctor": "inspect",
    "realman.verify": "verify",
    "realman.sim.record": "sample",
    "realman.emulator": "emulator",
}
"""What was run as `python -m MODULE` -> the command of today."""


class MovedModules(importlib.abc.MetaPathFinder):
    """Finds nothing, and says where a moved module is."""

    def find_spec(
        self, fullname: str, path: object, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return None for a module that never moved.

        `path` is not used. It need not be a sequence: that of a namespace package is not.

        Raises:
            ModuleNotFoundError: The module moved. The message names its new place.
            SystemExit: `python -m` was asked to run it. The message names the command of today.
        """
        if fullname not in MOVED:
            return None
        module, *flags = _module_to_run()
        if module in COMMANDS and (module == fullname or module.startswith(f"{fullname}.")):
            raise SystemExit(f"error: 'python -m {module}' is now: {shlex.join(['realman', COMMANDS[module], *flags])}")
        raise ModuleNotFoundError(f"'{fullname}' is now '{MOVED[fullname]}'", name=fullname)


def _module_to_run() -> list[str]:
    """Return the module and flags after `-m`, or an empty name."""
    # While Python looks for the module, the script's name is still "-m".
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return [""]
    return sys.orig_argv[sys.orig_argv.index("-m") + 1 :] or [""]
