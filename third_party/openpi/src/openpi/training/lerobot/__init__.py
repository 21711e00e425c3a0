"""Read LeRobot datasets: metadata, number columns, images and videos."""
