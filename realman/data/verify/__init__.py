"""Compare every item that the official lerobot loads with the recordings."""
