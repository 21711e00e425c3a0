"""Recording of episodes while a policy runs.

An episode holds what was seen, what was measured and what was really sent. It is the same HDF5 file that teleoperation
writes, so `realman convert` reads it and the robot PC needs no dataset library. The images are full-size JPEGs, which
the conversion to a LeRobot dataset copies unchanged.
"""
