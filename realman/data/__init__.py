"""A recording until it is a proven dataset: read, checked, converted, inspected, verified."""
