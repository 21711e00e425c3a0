"""Two simulated RM65 arms on a table (MuJoCo): scene, kinematics, rendering, a scripted task, recordings, a `Robot`.

The only package of this project that imports mujoco (extra `sim`). Nothing is imported here, so that
`realman.kinematics` stays usable without it.
"""
