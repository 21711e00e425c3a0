"""Compare a policy with a recording, as `realman offline` does.

    python examples/realman/offline.py --data data/sample/heldout

It needs a running server (`make serve`) and moves nothing.
"""

from realman import cli
from realman.evaluation import offline_command

if __name__ == "__main__":
    cli.run(offline_command.main, offline_command.Args)
