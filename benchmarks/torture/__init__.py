"""Attack the whole product on purpose, and count what it survives."""
