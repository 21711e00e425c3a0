"""Check an installed base package from outside the tree: it imports, its commands answer, its files are there."""

import importlib
import importlib.metadata
import importlib.resources
import pkgutil
import subprocess
import sys

import realman

# Rooms whose modules the base install can import. Others need an extra.
BASE_ROOMS = (
    "realman.data.raw",
    "realman.runtime",
    "realman.robots.rm65",
    "realman.robots.emulator",
    "realman.station",
)
NEEDS_SIM = ("realman.robots.emulator.robot", "realman.robots.emulator.scene")


def main() -> None:
    """Exit with a message at the first thing that is wrong."""
    for name in ("realman-openpi", "openpi-client"):
        print(name, importlib.metadata.version(name))
    if importlib.metadata.version("realman-openpi") != realman.__version__:
        sys.exit(f"realman.__version__ is {realman.__version__}, the wheel says otherwise")

    count = 0
    for room in BASE_ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            if module.name not in NEEDS_SIM:
                importlib.import_module(module.name)
                count += 1
    if "jax" in sys.modules:
        sys.exit("the base install imported jax")

    for package, file in (
        ("realman", "py.typed"),
        ("openpi_client", "py.typed"),
        ("realman.robots.sim", "assets/scene.xml"),
    ):
        if not importlib.resources.files(package).joinpath(file).is_file():
            sys.exit(f"the wheel lacks {package}/{file}")
    for command in (["--version"], ["client", "--help"], ["emulator", "--help"], ["support", "--help"]):
        subprocess.run(["realman", *command], check=True, stdout=subprocess.DEVNULL, env={"PATH": f"{sys.prefix}/bin"})
    # Without an extra: one line with the remedy.
    for command, extra in ((["convert"], "data"), (["client"], "sim"), (["client", "--robot", "emulated"], "sim")):
        refused = subprocess.run([f"{sys.prefix}/bin/realman", *command], check=False, capture_output=True, text=True)
        lines = refused.stderr.splitlines()
        if refused.returncode != 1 or len(lines) != 1 or f"pip install 'realman-openpi[{extra}]'" not in lines[0]:
            sys.exit(f"realman {' '.join(command)} without the extra: expected one line, got {refused.stderr!r}")
    print(f"base install: {count} modules import, commands answer")


if __name__ == "__main__":
    main()
