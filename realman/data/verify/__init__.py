"""The official lerobot library as referee: it loads a dataset, and every item is compared with the recordings."""
