"""The parts of `openpi.transforms`, which is their public name."""
