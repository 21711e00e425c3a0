"""Train a policy.

Run: python third_party/openpi/scripts/train.py pi0_realman --exp-name first [--flags]
"""

import logging
import os
import signal

import jax

from openpi.shared import cli
from openpi.shared import compile_cache
from openpi.training import config as _config
from openpi.training.configs.train_config import TrainConfig
from openpi.training.host import distributed
from openpi.training.host import host_memory
from openpi.training.run import train_loop

logger = logging.getLogger(__name__)


def main(config: TrainConfig) -> int:
    """Train, print the last checkpoint's folder, and return the exit status."""
    host_memory.limit_arenas()
    # JAX takes three quarters of an accelerator's memory by default, but training has it to itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    distributed.initialize(config)
    compile_cache.enable()
    # Orbax reports every phase of a save.
    logging.getLogger("absl").setLevel(logging.WARNING)
    logger.info(
        "config %s, run %s, %d %s device(s)", config.name, config.exp_name, jax.device_count(), jax.default_backend()
    )
    summary = train_loop.train(config)
    logger.info(
        "%d steps in %.0f s, loss %.4f -> %.4f, checkpoint %s",
        summary.num_steps - summary.first_step,
        summary.seconds,
        summary.first_loss,
        summary.last_loss,
        summary.checkpoint,
    )
    print(summary.checkpoint)  # noqa: T201 - the result
    if summary.stop_signal is not None:
        logger.warning(
            "stopped by %s after step %d. Continue with --resume",
            signal.Signals(summary.stop_signal).name,
            summary.num_steps - 1,
        )
        return 128 + summary.stop_signal
    return 0


if __name__ == "__main__":
    cli.run(main, _config.cli)
