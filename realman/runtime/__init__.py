"""The control loop: from a policy server's chunks to targets inside the limits."""
