"""What a run writes for people: log lines, curves, TensorBoard, Weights & Biases."""
