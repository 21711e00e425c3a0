"""Import the registry before any robot's configs.

A robot's configs subclass classes of the registry, and the registry lists the robot's configs. With this line the
registry is always the first of the two, so it is complete after any import.
"""

import openpi.training.config  # noqa: F401
