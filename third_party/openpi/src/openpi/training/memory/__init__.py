"""The memory that a run needs, has, and could save."""
