"""Configs of robots that are not part of the framework.

Their modules and the registry import each other. Importing the registry here makes it the first of the two whichever
one a program asks for, so it is complete after any import.
"""

import openpi.training.config  # noqa: F401
