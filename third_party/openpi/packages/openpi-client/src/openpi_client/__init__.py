"""The robot's side of an openpi policy server: wire format, websocket client, control loop. Needs no accelerator."""

__version__ = "0.1.0"
