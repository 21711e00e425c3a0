"""One training step as a pure function: state, gradients, accumulation, layout on devices."""
