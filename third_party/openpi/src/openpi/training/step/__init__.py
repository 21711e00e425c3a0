"""The training step: state, gradients, accumulation and layout on devices."""
