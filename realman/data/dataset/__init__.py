"""LeRobot v2.1 datasets on disk: their layout, their writer, and how one is built safely from many episodes."""
