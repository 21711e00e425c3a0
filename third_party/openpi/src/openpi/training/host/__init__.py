"""The machine of a run: processes, memory, disk space and stop signals."""
