"""Serve a trained policy to robots over websockets.

    python scripts/serve_policy.py --port 8000 policy:checkpoint --policy.config pi0_realman --policy.dir checkpoints/...
    python scripts/serve_policy.py policy:replay --policy.config pi0_realman --policy.episode 3    # no model
    python scripts/serve_policy.py --env DROID                   # a released checkpoint

Put the general flags before the `policy:` word. Stop the server with Ctrl-C.
"""

from collections.abc import Mapping
import dataclasses
import enum
import logging
import os
import pathlib
import socket
import sys
from typing import Annotated, Any

from openpi.models import model as _model
from openpi.models import real_time_chunking as rtc
from openpi.policies import bundle
from openpi.policies import checkpoint_folder
from openpi.policies import example_observation
from openpi.policies import policy as _policy
from openpi.policies import policy_config as _policy_config
from openpi.policies import step_settings
from openpi.serving import access
from openpi.serving import contract_metadata
from openpi.serving import listening_socket
from openpi.serving import replay_policy
from openpi.serving import robot_limits
from openpi.serving.observation_contract import RobotLimits
from openpi.serving.websocket_policy_server import ServerOptions
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.shared import cli
from openpi.shared import compile_cache
from openpi.shared import places
from openpi.shared import ranges
from openpi.shared.errors import ConfigError
from openpi.shared.normalize import NormStats
from openpi.training import config as _config
from openpi.training.lerobot import metadata as lerobot_metadata
from openpi.training.samples import stated_names
from openpi_client import memory
from openpi_client.base_policy import BasePolicy

logger = logging.getLogger(__name__)

RECORD_DIR = pathlib.Path("policy_records")


class EnvMode(enum.Enum):
    """Robots with a released checkpoint."""

    ALOHA = "aloha"
    ALOHA_SIM = "aloha_sim"
    DROID = "droid"
    LIBERO = "libero"


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """Serve a checkpoint of your own, or an exported bundle."""

    # Name of the training config, for example pi0_realman. Not needed for a bundle, which records it.
    config: str | None = None
    # Folder of one step (for example checkpoints/pi0_realman/exp/20000), of a run (its newest step is served), or of a bundle.
    dir: str


@dataclasses.dataclass
class Replay:
    """Serve recorded actions without a model, to prove a robot's control loop."""

    # Name of the training config. It names the robot and the dataset.
    config: str
    # Episode, counted from 0.
    episode: ranges.Index = 0
    # Folder of the dataset itself. None takes the config's dataset.
    root: pathlib.Path | None = None

    def __post_init__(self) -> None:
        ranges.check_flags(self, "policy.")


@dataclasses.dataclass
class Default:
    """Serve the released checkpoint of --env."""


@dataclasses.dataclass
class Args:
    """What to serve, and where."""

    # Robot whose released checkpoint to serve. Has no effect with policy:checkpoint.
    env: EnvMode = EnvMode.ALOHA_SIM
    # Prompt for requests that carry none.
    default_prompt: str | None = None
    # TCP port. 0 takes a free one.
    port: ranges.ListeningPort = 8000
    # Write each request and its answer to ./policy_records.
    record: bool = False
    # Write the records to this folder instead.
    record_dir: pathlib.Path | None = None
    # Largest total size of the records, GB. The oldest records are deleted.
    record_gb: Annotated[
        float, ranges.Range(0.001, 1e6, "at least one request, and at most a thousand large disks")
    ] = 10.0
    # Address to listen at: 127.0.0.1 for clients on this machine, 0.0.0.0 for the whole network.
    host: str = "127.0.0.1"
    # File of the API keys accepted from clients, one per line.
    api_key_file: pathlib.Path | None = None
    # Certificate chain (PEM) for encrypted connections, wss://.
    tls_cert: pathlib.Path | None = None
    # Private key (PEM) of that certificate.
    tls_key: pathlib.Path | None = None
    # Integration steps of a flow model (pi0, pi0.5). Fewer are faster. None takes the model's own number.
    num_steps: Annotated[int, ranges.Range(1, 1000, "more steps change nothing")] | None = None
    # Number of waiting requests that one call of the model may answer. 1 answers them one by one.
    max_batch: Annotated[int, ranges.Range(1, 64, "robots that one accelerator can serve")] = 1
    # Ways in which clients may continue the previous chunk (real-time chunking), the preferred one first: prefix (for models
    # trained with it), identity, vjp (takes an additional backward pass). Each is compiled at the start. None offers those
    # that cost no time.
    rtc_methods: tuple[rtc.Method, ...] | None = None
    # Largest request, MB.
    max_message_mb: Annotated[int, ranges.Range(1, 1024, "images of a robot, uncompressed")] = 64
    # Share of the accelerator's memory to take at the start, 0 to 1. None takes memory as needed.
    device_memory: Annotated[float, ranges.Range(0.01, 1.0, "a share")] | None = None
    # Folder that keeps compiled programs, so that the next start is faster.
    compile_cache: pathlib.Path = pathlib.Path("~/.cache/jax")
    # Answer failed requests with the traceback.
    debug: bool = False
    # Policy to serve.
    policy: Checkpoint | Replay | Default = dataclasses.field(default_factory=Default)

    def __post_init__(self) -> None:
        ranges.check_flags(self)


DEFAULT_CHECKPOINT: dict[EnvMode, Checkpoint] = {
    EnvMode.ALOHA: Checkpoint(config="pi05_aloha", dir="gs://openpi-assets/checkpoints/pi05_base"),
    EnvMode.ALOHA_SIM: Checkpoint(config="pi0_aloha_sim", dir="gs://openpi-assets/checkpoints/pi0_aloha_sim"),
    EnvMode.DROID: Checkpoint(config="pi05_droid", dir="gs://openpi-assets/checkpoints/pi05_droid"),
    EnvMode.LIBERO: Checkpoint(config="pi05_libero", dir="gs://openpi-assets/checkpoints/pi05_libero"),
}


@dataclasses.dataclass(frozen=True)
class Served:
    """A policy and its description."""

    policy: BasePolicy
    metadata: dict[str, Any]
    example: dict[str, Any] | None
    limits: RobotLimits
    description: str


def main(args: Args) -> None:
    """Serve a trained policy to robots over websockets.

    Put the general flags before the `policy:` word.
    """
    # Orbax reports each file through absl, and the server itself logs its connections.
    for chatty in ("absl", "websockets.server"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    memory.keep_freed_memory()
    # Health checks and other clients wait for the thread that reads a heavy request. Python's default is 5 ms each time.
    sys.setswitchinterval(0.001)
    options = ServerOptions(
        debug=args.debug,
        max_message_bytes=args.max_message_mb * 2**20,
        api_keys=() if args.api_key_file is None else access.read_key_file(args.api_key_file),
        tls=access.tls_context(args.tls_cert, args.tls_key),
        max_batch=args.max_batch,
    )
    _set_up_jax(args)
    # The port is taken first, so that a wrong one is reported before the minutes of loading.
    with listening_socket.bind(args.host, args.port) as sock:
        if args.record or args.record_dir is not None:
            places.check(args.record_dir or RECORD_DIR, "--record-dir")
        served = load_replay(args, args.policy) if isinstance(args.policy, Replay) else load_checkpoint(args)
        if not options.api_keys and not access.is_loopback(args.host):
            logger.warning(
                "listening at %s without a key: anyone who reaches this port can use the policy and see its images. "
                "See --api-key-file",
                args.host,
            )
        logger.info("warming up" if served.example else "no example for this robot: the first request will be slow")
        _serve(args, served, options, sock)


def load_checkpoint(args: Args) -> Served:
    """Load the policy of a checkpoint and describe it."""
    checkpoint = args.policy if isinstance(args.policy, Checkpoint) else DEFAULT_CHECKPOINT[args.env]
    step_dir = checkpoint_folder.resolve(checkpoint.dir)
    registered = _config.get_config(bundle.config_name(step_dir, checkpoint.config))
    settings = _policy_config.trained_settings(registered, step_dir)
    train_config, data_config = settings.train_config, settings.data_config
    if args.num_steps is not None and train_config.model.model_type == _model.ModelType.PI0_FAST:
        raise ConfigError(f"--num-steps has no meaning for '{train_config.name}', a pi0-FAST model. Omit it")
    norm_stats = checkpoint_folder.load_norm_stats(step_dir, data_config.asset_id)
    policy = _policy_config.create_policy(
        settings,
        default_prompt=args.default_prompt,
        sample_kwargs=None if args.num_steps is None else {"num_steps": args.num_steps},
        norm_stats=norm_stats,
        rtc_methods=args.rtc_methods,
    )
    # The example warms the policy up and sets the contract of its requests.
    state_size = _state_size(norm_stats, train_config.model.action_dim)
    example = example_observation.for_transforms(data_config.data_transforms, state_size)
    prompt = args.default_prompt or getattr(train_config.data, "default_prompt", None)
    metadata = contract_metadata.describe_checkpoint(
        train_config, data_config, step_dir, example=example, default_prompt=prompt, policy=policy
    )
    limits = robot_limits.describe(
        data_config.data_transforms, norm_stats=norm_stats, cameras=metadata.get("cameras", ())
    )
    return Served(policy, metadata, example, limits, f"config '{train_config.name}', checkpoint {step_dir}")


def _state_size(norm_stats: Mapping[str, NormStats], model_size: int) -> int | None:
    """Return how many numbers the state had in training.

    The statistics show it. None means that they were padded to the model's width.
    """
    size = norm_stats["state"].mean.size if "state" in norm_stats else model_size
    return size if size < model_size else None


def load_replay(args: Args, replay: Replay) -> Served:
    """Read the episode to replay and describe it."""
    if args.max_batch > 1 or args.record or args.record_dir is not None:
        raise ConfigError("--max-batch and --record have no meaning for policy:replay. Omit them")
    train_config = _config.get_config(replay.config)
    data_config = train_config.data.create(None, train_config.model)
    if data_config.repo_id is None and replay.root is None:
        raise ConfigError(f"config '{replay.config}' has no dataset. Give its folder with --policy.root")
    name = data_config.repo_id or str(replay.root)
    dataset = lerobot_metadata.load_metadata(name, replay.root)
    stated_names.check(data_config, dataset)
    key = data_config.action_sequence_keys[0]
    actions = replay_policy.read_actions(name, replay.episode, replay.root, key=key)
    horizon = train_config.model.action_horizon
    # The rate is that of the recording.
    metadata = {"action_horizon": horizon, **(step_settings.contract(train_config, dataset.fps) or {})}
    policy = replay_policy.ReplayPolicy(
        actions, action_horizon=horizon, action_chunk=metadata.get("action_chunk", horizon)
    )
    description = f"the recorded actions of episode {replay.episode} of '{name}', {len(actions)} steps"
    metadata |= {"replay": description, "config": replay.config, **contract_metadata.describe_server()}
    example = example_observation.for_transforms(data_config.data_transforms)
    limits = robot_limits.describe(data_config.data_transforms)
    return Served(policy, metadata, example, limits, description)


def _serve(args: Args, served: Served, options: ServerOptions, sock: socket.socket) -> None:
    policy, recorder = served.policy, None
    if args.record or args.record_dir is not None:
        recorder = _policy.PolicyRecorder(policy, args.record_dir or RECORD_DIR, max_bytes=int(args.record_gb * 1e9))
        recorder.is_recording = False  # the warm-up is not a client's request
        policy = recorder
    server = WebsocketPolicyServer(
        policy,
        args.host,
        args.port,
        served.metadata,
        example=served.example,
        limits=served.limits,
        options=options,
        sock=sock,
    )

    def announce(warmup_s: float) -> None:
        if recorder is not None:
            recorder.is_recording = True
        scheme = "ws" if options.tls is None else "wss"
        address = f"{scheme}://{_public_name(args.host)}:{server.port}"
        default_prompt = served.metadata.get("prompt")
        prompt = "from the client" if default_prompt is None else f"'{default_prompt}' by default"
        logger.info("ready at %s: %s, prompt %s, warm-up %.1f s", address, served.description, prompt, warmup_s)

    try:
        server.serve_forever(announce)
    finally:
        if recorder is not None:
            recorder.close()
    if server.is_busy:
        # An inference cannot be interrupted, and an orderly exit of the interpreter would free memory that it still uses.
        logging.shutdown()
        os._exit(0)


def _set_up_jax(args: Args) -> None:
    """Apply the settings that precede the first use of the accelerator."""
    if args.device_memory is None:
        # JAX's default, three quarters of the memory at once, leaves nothing for a robot's other programs.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    else:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{args.device_memory:g}"
    compile_cache.enable(args.compile_cache)


def _public_name(host: str) -> str:
    """Return the name under which clients reach this machine.

    A wildcard address is not such a name.
    """
    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host


if __name__ == "__main__":
    cli.run(main, Args)
