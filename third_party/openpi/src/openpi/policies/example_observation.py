"""Made-up observations of each robot, in the form that its clients send."""

from collections.abc import Callable
from typing import Any

import numpy as np

from openpi import transforms as _transforms
from openpi.policies import aloha_policy
from openpi.policies import droid_policy
from openpi.policies import libero_policy
from openpi.policies import realman_policy

_EXAMPLES: dict[type, Callable[[], dict[str, Any]]] = {
    aloha_policy.AlohaInputs: aloha_policy.make_aloha_example,
    droid_policy.DroidInputs: droid_policy.make_droid_example,
    libero_policy.LiberoInputs: libero_policy.make_libero_example,
    realman_policy.RealmanInputs: realman_policy.make_realman_example,
}


# Robots whose state may have any size and is passed on unchanged, with its key.
_STATE_OF_ANY_SIZE = {libero_policy.LiberoInputs: "observation/state"}


def for_transforms(data_transforms: _transforms.Group, state_size: int | None = None) -> dict[str, Any] | None:
    """Return an example for the robot to which these transforms belong.

    Args:
        data_transforms: Transforms of the robot.
        state_size: Size of the state that the policy was trained with. Only used if the robot does not fix it.

    Returns:
        None for an unknown robot.
    """
    for transform in data_transforms.inputs:
        if (kind := type(transform)) in _EXAMPLES:
            example = _EXAMPLES[kind]()
            if state_size is not None and kind in _STATE_OF_ANY_SIZE:
                example[_STATE_OF_ANY_SIZE[kind]] = np.zeros(state_size)
            return example
    return None
