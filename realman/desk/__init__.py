"""The person at the robot PC: what they ask of a run while it goes on, by which keys, and what they see of it."""
