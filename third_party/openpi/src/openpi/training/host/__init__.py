"""The machine that a run is on: its processes, memory, disk space and stop signals."""
