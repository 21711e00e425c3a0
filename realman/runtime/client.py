"""The policy client of the robot side.

It waits for the policy server, checks that the server's policy fits this robot, and checks every reply. The realtime
loop and the offline evaluation both use `PolicyClient`, so what is measured offline is what runs on the arms. The
module needs only numpy, pillow, msgpack and websockets, because it runs on the robot PC.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
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
"""Name of this robot in a server's metadata."""

API_KEY_ENV = "REALMAN_API_KEY"
"""Environment variable with the key for a server that asks for one. The key is never in a file or a flag."""

IMAGE_SIZE_PX = 224
"""Side of the sent images: the policy's input size, so the server need not resize and an image takes only 151 kB."""

_FPS_TOLERANCE = 0.01

_UNITS = {"joints": "rad", "grippers": "0..1, 1 = open"}
"""Units of the 14 numbers on this side."""


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """What the server says about the policy behind it."""

    address: str
    cameras: tuple[str, ...]
    """Cameras whose images it needs."""
    action_chunk: int
    """Steps of each prediction that it recommends to execute."""
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
    """Time from observation to checked reply, including the resizing, s."""
    infer_s: float | None
    """The server's own inference time, s. None if it reports none."""


@dataclasses.dataclass(frozen=True, eq=False)
class LeftOver:
    """Steps of the previous chunk that the next chunk must continue.

    They are executed while the next chunk is predicted, and after.
    """

    actions: JointTraj
    """Absolute targets (k, 14). Row i belongs to step i of the requested chunk."""
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
        ServerError: The policy does not fit. The message names every difference.
    """
    problems: list[str] = []
    # An array does not compare to a single bool, and its values are meant.
    said = {key: _as_list(value) for key, value in metadata.items()}

    def number(key: str, *, is_whole: bool = True) -> float:
        value = said.get(key)
        found = _number(value)
        if found is None or not 0 < found < math.inf or (is_whole and found != int(found)):
            problems.append(f"'{key}' is {value!r:.80}, expected a positive {'whole ' if is_whole else ''}number")
            return 0.0
        return found

    if said.get("robot") != ROBOT_NAME:
        problems.append(f"'robot' is {said.get('robot')!r:.80}, expected '{ROBOT_NAME}'")
    problems += _dim_name_problems(said.get("dim_names"))
    # An older server does not send these keys.
    ours = {"units": _UNITS, "state_dim": spec.NUM_DIMS, "image_size": [IMAGE_SIZE_PX, IMAGE_SIZE_PX]}
    problems += [
        f"'{key}' is {said[key]!r:.80}, expected {value!r}"
        for key, value in ours.items()
        if key in said and said[key] != value
    ]
    # Cameras and rates are compared with what this side can do.
    asked = _names(said.get("cameras") or list(cameras))
    if asked is None:
        problems.append(f"'cameras' is {said['cameras']!r:.80}, expected a list of names")
    elif missing := [name for name in asked if name not in cameras]:
        problems.append(f"'cameras' asks for {', '.join(missing)}, this side has {', '.join(cameras) or 'none'}")
    chunk, horizon, server_fps = (
        int(number("action_chunk")),
        int(number("action_horizon")),
        number("fps", is_whole=False),
    )
    if chunk > horizon > 0:
        problems.append(f"'action_chunk' is {chunk}, more than 'action_horizon' {horizon}")
    remedy = "Serve a checkpoint trained for this robot"
    if server_fps and abs(server_fps - fps) > _FPS_TOLERANCE:
        if not problems:
            remedy = f"{remedy}, or set 'fps = {server_fps:g}' of the robot in site.toml"
        problems.append(f"'fps' is {server_fps:g}, this side runs at {fps:g}")
    if problems:
        raise ServerError(f"policy server {address} does not fit: {'; '.join(problems)}. {remedy}")
    return ServerInfo(address, asked or (), chunk, horizon, metadata)


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _number(value: Any) -> float | None:
    """Return a number, or None for anything else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _names(value: Any) -> tuple[str, ...] | None:
    """Return a list of names, or None for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value)


def _dim_name_problems(names: object) -> list[str]:
    if not isinstance(names, Sequence) or len(names) != spec.NUM_DIMS:
        return [
            f"'dim_names' is {names!r:.80}, expected the {spec.NUM_DIMS} names {spec.DIM_NAMES[0]}..{spec.DIM_NAMES[-1]}"
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
    """Return the request for one observation, with images at the policy's size.

    Args:
        state: Measured position (14,), rad and gripper fraction, right arm first.
        images: Images of at least `cameras`, uint8 (h, w, 3) RGB, any size.
        cameras: Which images to send.
        prompt: Task text. None lets the server use its default.
        left_over: Steps of the previous chunk, for real-time chunking.
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
    """Return the actions of a reply as a new float64 array.

    Raises:
        ServerError: The actions are missing, not (at least `min_steps`, 14) numbers, or not finite.
    """
    if "actions" not in reply:
        raise ServerError(
            f"policy server {address}: the reply has {', '.join(map(str, reply)) or 'no keys'}, expected 'actions'"
        )
    try:
        numbers = np.asarray(reply["actions"])
    except (TypeError, ValueError) as e:
        raise ServerError(f"policy server {address}: 'actions' are not an array of numbers ({e})") from e
    # Texts, dates and truth values would become numbers, too.
    if numbers.dtype.kind not in "iuf":
        raise ServerError(f"policy server {address}: 'actions' hold {numbers.dtype}, expected numbers")
    actions = np.array(numbers, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != spec.NUM_DIMS or actions.shape[0] < min_steps:
        raise ServerError(
            f"policy server {address}: 'actions' have shape {actions.shape}, "
            f"expected (at least {min_steps}, {spec.NUM_DIMS})"
        )
    # The message names the first such value and counts all of them.
    bad = np.argwhere(~np.isfinite(actions))
    if bad.size:
        step, dim = (int(i) for i in bad[0])
        raise ServerError(
            f"policy server {address}: 'actions' are not finite at step {step}, {spec.DIM_NAMES[dim]} [{dim}] "
            f"({len(bad)} such values)"
        )
    return actions


class PolicyClient:
    """A connection to the policy server that checks every reply.

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
        """Take checked parts. Call `connect` instead."""
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
        """Wait for the server and check that its policy fits this robot.

        Args:
            host: Host name or address.
            port: TCP port.
            cameras: Cameras that this side can send.
            fps: Control rate of this side, Hz.
            action_chunk: Steps to execute of each prediction. None takes the number that the server recommends.
            api_key: Key for a server that asks for one.
            connect_timeout_s: How long to wait for the server to come up, s.
            reply_timeout_s: How long one prediction may take, s.
            jpeg_quality: Send images as JPEG of this quality, 1..100, for a slow network. None sends pixels.

        Raises:
            ServerError: No server answers in time, its policy does not fit, `action_chunk` is longer than its
                predictions, or it does not accept JPEG images.
        """
        address = f"{host}:{port}"
        policy = _open(
            host, port, api_key=api_key, connect_timeout_s=connect_timeout_s, reply_timeout_s=reply_timeout_s
        )
        # A server that does not fit must not keep an open connection.
        try:
            info = read_metadata(policy.get_server_metadata(), address=address, cameras=cameras, fps=fps)
            chunk = info.action_chunk if action_chunk is None else action_chunk
            if not 1 <= chunk <= info.action_horizon:
                raise ServerError(
                    f"policy server {address}: action_chunk is {chunk}, expected 1..{info.action_horizon}, "
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
        """Rate of the policy's steps, Hz.

        `connect` has compared it with the control rate of this side.
        """
        return float(self.info.metadata["fps"])

    def require_rtc(self) -> None:
        """Refuse a server that does not support real-time chunking.

        Raises:
            ServerError: The server does not announce real-time chunking.
        """
        features = protocol.features(self.info.metadata)
        if protocol.FEATURE_RTC not in features:
            raise ServerError(
                f"policy server {self.info.address}: its features are {', '.join(features) or 'none'}, "
                f"expected real-time chunking ('{protocol.FEATURE_RTC}'). Serve a pi0 or pi0.5 checkpoint with "
                "'make serve', or choose the execution 'blend' or 'async'"
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
            images: Images of at least the cameras that the server uses, uint8 (h, w, 3) RGB.
            prompt: Task text. None lets the server use its default.
            left_over: Steps of the previous chunk, for a server that announces real-time chunking.

        Raises:
            ServerError: The server is gone, took too long or reported a failure, or its reply cannot be used.
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
        return Prediction(actions, time.monotonic() - start, _infer_s(reply))

    def close(self) -> None:
        """Close the connection."""
        self._policy.close()

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _infer_s(reply: Mapping[str, Any]) -> float | None:
    """Return the server's inference time, s.

    It is only a figure for reports, so anything but a time counts as none.
    """
    timing = reply.get(protocol.SERVER_TIMING_KEY)
    infer_ms = _number(_as_list(timing.get("infer_ms"))) if isinstance(timing, Mapping) else None
    return infer_ms / 1000 if infer_ms is not None and 0 <= infer_ms < math.inf else None


def _require_jpeg(info: ServerInfo) -> None:
    if protocol.FEATURE_JPEG_IMAGES not in protocol.features(info.metadata):
        raise ServerError(f"policy server {info.address}: does not accept JPEG images. Remove 'jpeg_quality'")


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
            f"no policy server at {host}:{port} after {connect_timeout_s:g} s ({reason}). Start it with 'make serve'"
        ) from e
    except PolicyClientError as e:
        raise ServerError(_first_line(e)) from e


def _first_line(error: BaseException) -> str:
    """Return the first line of an error.

    Further lines may be the server's traceback. Its text must not steer this side's terminal.
    """
    line = str(error).strip().partition("\n")[0]
    return "".join(char if char.isprintable() else "?" for char in line) or type(error).__name__
