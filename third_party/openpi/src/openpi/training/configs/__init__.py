"""What a run is told: training and data configs, the robots' presets, mixtures, validation episodes."""
