"""Keeps what went into a policy and what came out, for a look at it afterwards."""

from collections.abc import Iterator, Mapping
import logging
import pathlib
import re
from typing import Any

import numpy as np

from openpi_client import base_policy as _base_policy

logger = logging.getLogger(__name__)

_STEP_FILE = re.compile(r"step_(\d+)\.npz")


class PolicyRecorder(_base_policy.BasePolicy):
    """Writes each call of a policy to `<record_dir>/step_<n>.npz` and deletes the oldest beyond `max_steps`.

    A file holds one array per leaf, under keys like `inputs/images/cam_high` and `outputs/actions`; `numpy.load` reads it
    without pickle. Numbers go on from what the folder already holds. A full disk ends the recording, not the inference.
    """

    def __init__(
        self, policy: _base_policy.BasePolicy, record_dir: str | pathlib.Path, *, max_steps: int = 5000
    ) -> None:
        """Record `policy`; four raw cameras make 3.7 MB per step, so mind the disk when raising `max_steps`."""
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}, expected at least 1")
        self._policy = policy
        self._record_dir = pathlib.Path(record_dir)
        self._record_dir.mkdir(parents=True, exist_ok=True)
        self._steps = sorted(_recorded_steps(self._record_dir))
        self._max_steps = max_steps
        self.is_recording = True
        """Calls are passed on without a record while this is False."""
        logger.info("recording requests and answers to %s, the last %d of them", self._record_dir, max_steps)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the recorded policy."""
        return getattr(self._policy, "metadata", {})

    def infer(self, obs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the policy's answer, having written it down."""
        results = self._policy.infer(obs, **kwargs)
        if self.is_recording:
            try:
                self._write(dict(_leaves({"inputs": obs, "outputs": results})))
            except OSError:
                self.is_recording = False
                logger.exception("recording to %s stopped", self._record_dir)
        return results

    def reset(self) -> None:
        """Reset the recorded policy."""
        self._policy.reset()

    def _write(self, leaves: Mapping[str, np.ndarray]) -> None:
        step = self._steps[-1] + 1 if self._steps else 0
        path = self._step_path(step)
        # Under another name until it is whole, so that a reader never meets half a file.
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **leaves)
        partial.replace(path)
        self._steps.append(step)
        while len(self._steps) > self._max_steps:
            self._step_path(self._steps.pop(0)).unlink(missing_ok=True)

    def _step_path(self, step: int) -> pathlib.Path:
        return self._record_dir / f"step_{step}.npz"


def _recorded_steps(directory: pathlib.Path) -> Iterator[int]:
    for path in directory.iterdir():
        if match := _STEP_FILE.fullmatch(path.name):
            yield int(match[1])


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Flatten nested dicts to arrays; None leaves nothing, anything that is no plain data is written as its text."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    elif tree is not None:
        array = np.asarray(tree)
        yield path, np.asarray(str(tree)) if array.dtype.hasobject else array
