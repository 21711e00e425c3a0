"""Made-up observations of each robot, in the form that its clients send."""

from collections.abc import Callable
from typing import Any

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


def for_transforms(data_transforms: _transforms.Group) -> dict[str, Any] | None:
    """Return an example for the robot that these transforms belong to; None for an unknown robot."""
    for transform in data_transforms.inputs:
        if type(transform) in _EXAMPLES:
            return _EXAMPLES[type(transform)]()
    return None
