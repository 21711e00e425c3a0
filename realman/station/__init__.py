"""The person at the robot PC: by which keys they steer a run, and what they see of it."""
