"""How much memory a run needs, how much there is, and what would fit."""
