"""Episodes recorded while a policy runs: what was seen, measured and really sent, in the form that `make convert` reads.

The robot PC needs no dataset library for it: an episode is the same HDF5 file that teleoperation writes, with the cameras'
full pictures as JPEG, which the conversion to a LeRobot dataset takes over untouched.
"""
