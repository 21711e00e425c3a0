"""Choose the next sample: datasets by index, and their order."""
