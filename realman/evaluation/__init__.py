"""Judge a policy before anything moves: errors, seams, plots."""
