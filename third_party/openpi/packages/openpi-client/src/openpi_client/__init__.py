"""The robot's side of an openpi policy server.

It holds the wire format, the websocket client and the control loop, and needs no accelerator.
"""

# Its own label, so that an installer never takes it for the one of PyPI or the other way round.
__version__ = "0.2.0+realman"
