"""Everything that is a robot to the control loop, and its cameras."""
