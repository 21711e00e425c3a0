"""Read a LeRobot dataset frame by frame: its metadata, columns, images and videos."""
