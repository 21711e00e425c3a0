"""Policies: a trained model that answers a robot's observations.

`<robot>_policy.py` maps a robot's observations to the model's inputs and its outputs to actions. `policy.py` runs the
model, `policy_config.py` builds a policy from a checkpoint, `bundle.py` from a folder that `make export` wrote.
"""
