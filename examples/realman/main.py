"""Run a policy on the arms, as `realman client` does.

    python examples/realman/main.py --prompt "pick up the cube"

This drives the simulated robot. Read README.md in this folder before real arms move.
"""

from realman import cli
from realman.station import client_command

if __name__ == "__main__":
    cli.run(client_command.main, client_command.Args)
