"""LeRobot v2.1 datasets on disk: layout, writers, and a safe build."""
