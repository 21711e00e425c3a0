"""The reports of a run: log, curves, TensorBoard, Weights & Biases."""
