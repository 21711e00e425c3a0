"""Configure a run: training, data, robots, mixtures and validation episodes."""
