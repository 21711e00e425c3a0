"""The policy server as the robot side sees it: wait for it, check that it fits, ask it, and trust no reply.

The realtime loop and the offline evaluation both go through `PolicyClient`, so what is measured offline is what runs on
the arms. Light on purpose: numpy, pillow, msgpack and websockets are all it needs.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import time
from types import TracebackType
from typing import Any

import numpy as np

from openpi_client import image_tools
from openpi_client import protocol
from openpi_client import websocket_client_policy
from openpi_client.errors import PolicyClientError
from openpi_client.errors import ServerUnreachableError
from realman import spec
from realman.arrays import Image
from realman.arrays import JointTraj
from realman.arrays import JointVec
from realman.errors import ServerError

ROBOT_NAME = "realman_rm65_dual"
"""What a server of this robot's policies calls the robot in its metadata."""

API_KEY_ENV = "REALMAN_API_KEY"
"""Where programs find the key for a server that asks for one: never in a file or a flag."""

IMAGE_SIZE_PX = 224
"""Side of the images sent: the policy's input size, so the server need not resize and little is sent (151 kB each)."""

_FPS_TOLERANCE = 0.01

_UNITS = {"joints": "rad", "grippers": "0..1, 1 = open"}
"""What the 14 numbers mean on this side."""


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """What the server says about the policy behind it."""

    address: str
    cameras: tuple[str, ...]
    """Cameras to send."""
    action_chunk: int
    """Steps of each prediction that the server recommends to execute."""
    action_horizon: int
    """Steps of each prediction."""
    metadata: Mapping[str, Any]
    """The whole message."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """One reply of the policy."""

    actions: JointTraj
    """Absolute targets (horizon, 14), one per control step, checked to be finite."""
    round_trip_s: float
    """From the observation in hand to the reply checked, resizing included, s."""
    infer_s: float | None
    """The server's own inference time, s, when it says."""


@dataclasses.dataclass(frozen=True, eq=False)
class LeftOver:
    """What will still be executed of the previous chunk while the next one is predicted, and after: it is to go on from that."""

    actions: JointTraj
    """Absolute targets (k, 14); row i belongs to step i of the chunk asked for."""
    delay: int
    """Steps that will have been executed when the reply arrives, at most k."""


def read_metadata(metadata: Mapping[str, Any], *, address: str, cameras: Sequence[str], fps: float) -> ServerInfo:
    """Check that the server's policy is one for this robot.

    Args:
        metadata: The server's first message.
        address: `host:port`, for messages.
        cameras: Cameras that this side can send.
        fps: Control rate of this side, Hz.

    Raises:
        ServerError: Names every difference at once.
    """
    problems = []

    def number(key: str) -> float:
        value = metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            problems.append(f"'{key}' is {value!r}, expected a positive number")
            return 0.0
        return value

    if metadata.get("robot") != ROBOT_NAME:
        problems.append(f"'robot' is {metadata.get('robot')!r}, expected '{ROBOT_NAME}'")
    problems += _dim_name_problems(metadata.get("dim_names"))
    # An older server says nothing about these.
    ours = {"units": _UNITS, "state_dim": spec.NUM_DIMS, "image_size": [IMAGE_SIZE_PX, IMAGE_SIZE_PX]}
    problems += [
        f"'{key}' is {metadata[key]!r}, this side has {value!r}"
        for key, value in ours.items()
        if key in metadata and metadata[key] != value
    ]
    asked = tuple(metadata.get("cameras") or cameras)
    if missing := [name for name in asked if name not in cameras]:
        problems.append(f"'cameras' asks for {', '.join(missing)}, this side has {', '.join(cameras) or 'none'}")
    chunk, horizon, server_fps = int(number("action_chunk")), int(number("action_horizon")), float(number("fps"))
    if chunk > horizon > 0:
        problems.append(f"'action_chunk' is {chunk}, more than 'action_horizon' {horizon}")
    if server_fps and abs(server_fps - fps) > _FPS_TOLERANCE:
        problems.append(f"'fps' is {server_fps:g}, this side runs at {fps:g}")
    if problems:
        raise ServerError(
            f"policy server {address} does not fit: {'; '.join(problems)}; serve a checkpoint trained for this robot"
        )
    return ServerInfo(address, asked, chunk, horizon, metadata)


def _dim_name_problems(names: object) -> list[str]:
    if not isinstance(names, Sequence) or len(names) != spec.NUM_DIMS:
        return [
            f"'dim_names' is {names!r}, expected the {spec.NUM_DIMS} names {spec.DIM_NAMES[0]}..{spec.DIM_NAMES[-1]}"
        ]
    different = [
        f"[{i}] '{found}' for '{ours}'"
        for i, (found, ours) in enumerate(zip(names, spec.DIM_NAMES, strict=True))
        if found != ours
    ]
    return [f"'dim_names' differ: {', '.join(different)}"] if different else []


def build_request(
    state: JointVec,
    images: Mapping[str, Image],
    cameras: Sequence[str],
    prompt: str | None,
    left_over: LeftOver | None = None,
) -> dict[str, Any]:
    """Make the message for one observation: state, the asked cameras at the policy's size, and what else there is.

    Args:
        state: Measured position (14,), rad and gripper fraction, right arm first.
        images: At least the asked cameras, uint8 (h, w, 3) RGB, any size.
        cameras: Which to send.
        prompt: Task text; None lets the server use its default.
        left_over: The previous chunk, for real-time chunking.
    """
    request: dict[str, Any] = {
        "state": np.asarray(state, dtype=np.float32),
        "images": {name: image_tools.resize_with_pad(images[name], IMAGE_SIZE_PX, IMAGE_SIZE_PX) for name in cameras},
    }
    if prompt is not None:
        request["prompt"] = prompt
    if left_over is not None:
        request[protocol.RTC_KEY] = {
            "left_over": np.asarray(left_over.actions, dtype=np.float32),
            "delay": left_over.delay,
        }
    return request


def read_reply(reply: Mapping[str, Any], *, address: str, min_steps: int) -> JointTraj:
    """Take the actions out of a reply, as a fresh float64 array.

    Raises:
        ServerError: No actions, not (at least `min_steps`, 14) numbers, or not finite.
    """
    if "actions" not in reply:
        raise ServerError(f"policy server {address}: reply has no 'actions', only {', '.join(map(str, reply))}")
    try:
        actions = np.array(reply["actions"], dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise ServerError(f"policy server {address}: 'actions' are not numbers ({e})") from e
    if actions.ndim != 2 or actions.shape[1] != spec.NUM_DIMS or actions.shape[0] < min_steps:
        raise ServerError(
            f"policy server {address}: 'actions' have shape {actions.shape}, "
            f"expected (at least {min_steps}, {spec.NUM_DIMS})"
        )
    bad = np.argwhere(~np.isfinite(actions))
    if bad.size:
        step, dim = (int(i) for i in bad[0])
        raise ServerError(
            f"policy server {address}: 'actions' are not finite at step {step}, {spec.DIM_NAMES[dim]} [{dim}] "
            f"({len(bad)} such values)"
        )
    return actions


class PolicyClient:
    """A connection to the policy server that is checked when it opens and on every reply.

    Example:
        with PolicyClient.connect("127.0.0.1", 8000, cameras=spec.CAMERAS, fps=50) as client:
            actions = client.infer(state, images, prompt="put the cube on the tray").actions
    """

    def __init__(
        self,
        policy: websocket_client_policy.WebsocketClientPolicy,
        info: ServerInfo,
        action_chunk: int,
        jpeg_quality: int | None = None,
    ):
        """Use `connect`, which makes and checks all."""
        self._jpeg_quality = jpeg_quality
        self._policy = policy
        self.info = info
        self.action_chunk = action_chunk

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        *,
        cameras: Sequence[str],
        fps: float,
        action_chunk: int | None = None,
        api_key: str | None = None,
        connect_timeout_s: float = 30.0,
        reply_timeout_s: float = 30.0,
        jpeg_quality: int | None = None,
    ) -> "PolicyClient":
        """Wait for the server and check that its policy is one for this robot.

        Args:
            host: Host name or address.
            port: TCP port.
            cameras: Cameras that this side can send.
            fps: Control rate of this side, Hz.
            action_chunk: Steps to execute of each prediction; None takes the server's.
            api_key: Key, where the server asks for one.
            connect_timeout_s: How long to wait for the server to come up, s.
            reply_timeout_s: How long one prediction may take, s.
            jpeg_quality: Send images as JPEG of this quality, 1..100, for a slow network; None sends pixels.

        Raises:
            ServerError: No server in time, not one for this robot, or `action_chunk` is longer than its predictions.
        """
        address = f"{host}:{port}"
        policy = _open(
            host, port, api_key=api_key, connect_timeout_s=connect_timeout_s, reply_timeout_s=reply_timeout_s
        )
        try:
            info = read_metadata(policy.get_server_metadata(), address=address, cameras=cameras, fps=fps)
            chunk = info.action_chunk if action_chunk is None else action_chunk
            if not 1 <= chunk <= info.action_horizon:
                raise ServerError(
                    f"policy server {address}: action_chunk {chunk} asked for; expected 1..{info.action_horizon}, "
                    "the steps of one prediction"
                )
            if jpeg_quality is not None:
                _require_jpeg(info)
        except ServerError:
            policy.close()
            raise
        return cls(policy, info, chunk, jpeg_quality)

    @property
    def fps(self) -> float:
        """Rate of the policy's steps, Hz; `connect` has compared it with this side's."""
        return float(self.info.metadata["fps"])

    def require_rtc(self) -> None:
        """Refuse a server that would not heed what is left over of a chunk.

        Raises:
            ServerError: It does not announce real-time chunking.
        """
        features = (self.info.metadata.get(protocol.PROTOCOL_KEY) or {}).get("features") or []
        if protocol.FEATURE_RTC not in features:
            raise ServerError(
                f"policy server {self.info.address}: real-time chunking ('{protocol.FEATURE_RTC}') is not among its "
                f"features ({', '.join(map(str, features)) or 'none'}); serve a pi0 or pi0.5 checkpoint with 'make serve', "
                "or choose the execution 'blend' or 'async'"
            )

    def infer(
        self,
        state: JointVec,
        images: Mapping[str, Image],
        prompt: str | None = None,
        left_over: LeftOver | None = None,
    ) -> Prediction:
        """Ask for the next actions.

        Args:
            state: Measured position (14,), rad and gripper fraction, right arm first.
            images: At least the cameras that the server uses, uint8 (h, w, 3) RGB.
            prompt: Task text; None lets the server use its default.
            left_over: The previous chunk, for a server that announces real-time chunking.

        Raises:
            ServerError: The server is gone, too late, reported a failure, or its reply cannot be used.
        """
        start = time.monotonic()
        request = build_request(state, images, self.info.cameras, prompt, left_over)
        if self._jpeg_quality is not None:
            request["images"] = {
                name: image_tools.encode_jpeg(image, self._jpeg_quality) for name, image in request["images"].items()
            }
        try:
            reply = self._policy.infer(request)
        except PolicyClientError as e:
            raise ServerError(_first_line(e)) from e
        actions = read_reply(reply, address=self.info.address, min_steps=self.action_chunk)
        infer_ms = (reply.get("server_timing") or {}).get("infer_ms")
        return Prediction(actions, time.monotonic() - start, None if infer_ms is None else float(infer_ms) / 1000)

    def close(self) -> None:
        """End the connection."""
        self._policy.close()

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _require_jpeg(info: ServerInfo) -> None:
    features = (info.metadata.get(protocol.PROTOCOL_KEY) or {}).get("features") or []
    if protocol.FEATURE_JPEG_IMAGES not in features:
        raise ServerError(f"policy server {info.address}: does not take JPEG images; leave 'jpeg_quality' out")


def _open(
    host: str, port: int, *, api_key: str | None, connect_timeout_s: float, reply_timeout_s: float
) -> websocket_client_policy.WebsocketClientPolicy:
    try:
        return websocket_client_policy.WebsocketClientPolicy(
            host, port, api_key, connect_timeout_s=connect_timeout_s, request_timeout_s=reply_timeout_s
        )
    except ServerUnreachableError as e:
        reason = _first_line(e.__cause__ or e)
        raise ServerError(
            f"no policy server at {host}:{port} after {connect_timeout_s:g} s ({reason}); start it with 'make serve'"
        ) from e
    except PolicyClientError as e:
        raise ServerError(_first_line(e)) from e


def _first_line(error: BaseException) -> str:
    """Return the summary of an error, whose further lines may be the server's traceback."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
