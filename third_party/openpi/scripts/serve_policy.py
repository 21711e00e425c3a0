"""Serve a trained policy to robots over websockets.

    python scripts/serve_policy.py --port 8000 policy:checkpoint --policy.config pi0_realman --policy.dir checkpoints/...
    python scripts/serve_policy.py --env DROID                   # a released checkpoint

General flags come before the `policy:` word. Stop it with Ctrl-C.
"""

import dataclasses
import enum
import ipaddress
import logging
import os
import pathlib
import socket
from typing import Any

from openpi.policies import checkpoint_folder
from openpi.policies import example_observation
from openpi.policies import policy as _policy
from openpi.policies import policy_config as _policy_config
from openpi.serving import listening_socket
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.shared import cli
from openpi.training import config as _config

logger = logging.getLogger(__name__)

RECORD_DIR = pathlib.Path("policy_records")


class EnvMode(enum.Enum):
    """Robots with a released checkpoint."""

    ALOHA = "aloha"
    ALOHA_SIM = "aloha_sim"
    DROID = "droid"
    LIBERO = "libero"


@dataclasses.dataclass
class Checkpoint:
    """Serve a checkpoint of your own."""

    # Name of the training config, for example pi0_realman.
    config: str
    # Folder of one step, for example checkpoints/pi0_realman/exp/20000, or of a run, for its newest step.
    dir: str


@dataclasses.dataclass
class Default:
    """Serve the released checkpoint of --env."""


@dataclasses.dataclass
class Args:
    """What to serve, and where."""

    # Robot whose released checkpoint is served; without a meaning for policy:checkpoint.
    env: EnvMode = EnvMode.ALOHA_SIM
    # Prompt for requests that carry none.
    default_prompt: str | None = None
    # TCP port; 0 takes a free one.
    port: int = 8000
    # Write each request and answer to ./policy_records.
    record: bool = False
    # Address to listen at: 127.0.0.1 for clients on this machine, 0.0.0.0 for all of the network.
    host: str = "127.0.0.1"
    # Answer failed requests with the traceback.
    debug: bool = False
    # Which policy to serve.
    policy: Checkpoint | Default = dataclasses.field(default_factory=Default)


DEFAULT_CHECKPOINT: dict[EnvMode, Checkpoint] = {
    EnvMode.ALOHA: Checkpoint(config="pi05_aloha", dir="gs://openpi-assets/checkpoints/pi05_base"),
    EnvMode.ALOHA_SIM: Checkpoint(config="pi0_aloha_sim", dir="gs://openpi-assets/checkpoints/pi0_aloha_sim"),
    EnvMode.DROID: Checkpoint(config="pi05_droid", dir="gs://openpi-assets/checkpoints/pi05_droid"),
    EnvMode.LIBERO: Checkpoint(config="pi05_libero", dir="gs://openpi-assets/checkpoints/pi05_libero"),
}


def main(args: Args) -> None:
    """Serve a trained policy to robots over websockets; general flags come before the `policy:` word."""
    for chatty in ("absl", "websockets.server"):  # orbax reports each file through absl; connections are logged by us
        logging.getLogger(chatty).setLevel(logging.WARNING)
    checkpoint = args.policy if isinstance(args.policy, Checkpoint) else DEFAULT_CHECKPOINT[args.env]
    train_config = _config.get_config(checkpoint.config)
    # The port is taken first, so that a wrong one is known before the minutes of loading.
    with listening_socket.bind(args.host, args.port) as sock:
        step_dir = checkpoint_folder.resolve(checkpoint.dir)
        policy = _policy_config.create_trained_policy(train_config, step_dir, default_prompt=args.default_prompt)
        data_config = train_config.data.create(None, train_config.model)
        example = example_observation.for_transforms(data_config.data_transforms)
        _warn_if_open(args.host)
        logger.info("warming up" if example else "no example for this robot: the first request will be slow")
        _serve(args, policy, example, sock, f"config '{checkpoint.config}', checkpoint {step_dir}")


def _serve(
    args: Args, policy: _policy.Policy, example: dict[str, Any] | None, sock: socket.socket, description: str
) -> None:
    recorder = _policy.PolicyRecorder(policy, RECORD_DIR) if args.record else None
    server = WebsocketPolicyServer(
        recorder or policy, args.host, args.port, policy.metadata, example=example, debug=args.debug, sock=sock
    )
    if recorder is not None:
        recorder.is_recording = False  # the warm-up is no request

    def announce(warmup_s: float) -> None:
        if recorder is not None:
            recorder.is_recording = True
        address = f"ws://{_public_name(args.host)}:{server.port}"
        prompt = "as the client says" if args.default_prompt is None else f"'{args.default_prompt}' by default"
        logger.info("ready at %s: %s, prompt %s, warm-up %.1f s", address, description, prompt, warmup_s)

    server.serve_forever(announce)
    if server.is_busy:
        # An inference that cannot be interrupted; the interpreter's orderly end would pull memory from under it.
        logging.shutdown()
        os._exit(0)


def _warn_if_open(host: str) -> None:
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        logger.warning("listening at %s: whoever reaches this port can use the policy; there is no key check", host)


def _public_name(host: str) -> str:
    """How clients call this machine; a wildcard address is none."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host


if __name__ == "__main__":
    cli.run(main, Args)
