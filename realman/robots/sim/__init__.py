"""Two simulated RM65 arms on a table (MuJoCo).

Holds the scene, rendering, a scripted task, recordings and a `Robot`. This is the only package of the project that
imports mujoco (extra `sim`). This module imports nothing, so importing the package alone does not load mujoco.
"""
