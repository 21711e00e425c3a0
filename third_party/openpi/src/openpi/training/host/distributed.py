"""Train in several processes, one per host.

Every process runs the same command with its own --process-id:

    train.py pi0_realman --exp-name big --coordinator-address 10.0.0.1:9876 --num-processes 2 --process-id 0

All hosts must share the folder of the run. Process 0 writes the logs, and all processes write the checkpoints together.
"""

from collections.abc import Callable
import os
import pathlib
from typing import Any, TypeVar
import urllib.parse

import jax
from jax.experimental import multihost_utils
import numpy as np

from openpi.shared import errors
from openpi.training.configs.train_config import TrainConfig

T = TypeVar("T")

# Longest wait for the other processes to join, s.
_JOIN_TIMEOUT_S = 300


def initialize(config: TrainConfig) -> None:
    """Join the other processes if the config or the environment names any.

    Call this before any other use of JAX.

    Raises:
        ConfigError: Some of the settings are missing, or the other processes did not join.
    """
    given = {
        "--coordinator-address": config.coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "--num-processes": _number(config.num_processes, "JAX_NUM_PROCESSES"),
        "--process-id": _number(config.process_id, "JAX_PROCESS_ID"),
    }
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise errors.ConfigError(f"several processes: {' and '.join(missing)} not given. Each process needs all three")
    address, count, index = given.values()
    if not 0 <= index < count:
        raise errors.ConfigError(f"several processes: --process-id is {index}, expected 0 to {count - 1}")
    # CPUs cannot work together without an implementation of their collectives. This has no effect on accelerators.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # A proxy set in the environment does not lead to the hosts of a cluster, and gRPC would wait for it.
    os.environ["no_grpc_proxy"] = urllib.parse.urlsplit(f"//{address}").hostname or ""  # noqa: SIM112 - gRPC reads this spelling
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=_JOIN_TIMEOUT_S)
    except (RuntimeError, ValueError) as e:
        raise errors.ConfigError(
            f"several processes: process {index} of {count} could not join at {address}: {str(e).splitlines()[0]}"
        ) from e


def _number(flag: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if flag is not None or text is None:
        return flag
    if not text.isdecimal():
        raise errors.ConfigError(f"several processes: {variable} is '{text}', expected a number")
    return int(text)


def is_first() -> bool:
    """Return whether this process is the one that writes the logs."""
    return jax.process_index() == 0


def is_several() -> bool:
    """Return whether there are other processes."""
    return jax.process_count() > 1


def replicate(tree: Any, sharding: jax.sharding.NamedSharding) -> Any:
    """Put values that are the same in every process on all devices.

    Args:
        tree: Pytree of arrays. Random keys are allowed.
        sharding: A replicated sharding.
    """

    def put(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree)


def first_then_others(step: Callable[[], T], others: Callable[[], T]) -> T:
    """Do `step` in process 0, then `others` in the other processes.

    An error in one process ends all of them.

    Raises:
        UserError: The error of this process, or a report that another process failed.
    """
    if not is_several():
        return step()
    result = error = None
    for is_mine, action in ((is_first(), step), (not is_first(), others)):
        if is_mine:
            try:
                result = action()
            except errors.UserError as e:
                error = e
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array([error is not None])))
        if error is not None:
            raise error
        if failed.size:
            raise errors.ConfigError(f"process {failed[0]} cannot start. See its own output for the reason")
    return result


def first_decides(question: Callable[[], bool]) -> bool:
    """Return the answer of process 0 in all processes.

    Raises:
        UserError: Process 0 could not answer.
    """
    answer = []
    first_then_others(lambda: answer.append(question()), lambda: answer.append(False))
    return bool(multihost_utils.broadcast_one_to_all(np.int32(answer[0]))) if is_several() else answer[0]


def check_shared(path: pathlib.Path) -> None:
    """Check that this process sees a file that process 0 has written.

    Raises:
        ConfigError: The file is missing.
    """
    if not path.exists():
        raise errors.ConfigError(
            f"{path.parent}: process {jax.process_index()} does not see what process 0 has written there. "
            "Set --checkpoint-base-dir to a folder that all hosts share"
        )


def local_rows(array: jax.Array) -> np.ndarray:
    """Return the rows of an array on this process's devices.

    Args:
        array: Split along dimension 0, or not at all.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    by_start = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(by_start[start]) for start in sorted(by_start)])
