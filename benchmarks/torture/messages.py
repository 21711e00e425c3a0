"""Malformed and hostile requests to a policy server.

The server is a process of its own. One attack is a batch of messages. After it, a well-formed request must be answered with the right numbers, health must
have been reported in time all along, and the server must not have grown.
"""

import contextlib
import json
from pathlib import Path
import random
import socket
import subprocess
import threading
import time
from typing import Any
import urllib.request

import numpy as np
import psutil
import websockets.exceptions
import websockets.sync.client

from benchmarks.torture import hostile
from benchmarks.torture.attack import Outcome
from benchmarks.torture.processes import ROOT
from benchmarks.torture.processes import started
from openpi_client import msgpack_numpy
from openpi_client import protocol
from realman import spec

HOST = "127.0.0.1"
_BATCH = 40
_REPLY_S = 30.0
_HEALTH_S = 2.0
"""Longest wait for /healthz. The machine has other work than this server."""
_HEALTH_PERIOD_S = 0.05
_MAX_GROWTH_MB = 700.0
"""Room for a few of the largest messages that the server takes, 64 MB each, and for what they are decoded into."""
_KEEP = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
_ATOL = 1e-3


class Messages:
    """Sends what no client would, and then what a client does."""

    name = "messages"
    share = 1.5

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._health = Health()
        self._largest_mb = 0.0

    def open(self, folder: Path, seconds: float) -> None:
        """Start the server.

        Its model repeats the state, so that the right answer is known.
        """
        del seconds
        log = self._stack.enter_context((folder / "server.log").open("w"))
        command = [ROOT / "benchmarks/bench_serve.py", "--serve-ms", "0"]
        self._server = self._stack.enter_context(
            started(command, folder, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True)
        )
        self._log_path = folder / "server.log"
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"the policy server did not start: {self._log_path.read_text()[-1000:]}")
        self._port = int(line)
        for _ in range(3):
            if problem := self._ask(random.Random(0)):
                raise RuntimeError(f"before the first attack: {problem}")
        self._base_mb = self._memory_mb()
        self._health.start(self._port)
        self._stack.callback(self._health.stop)

    def attack(self, rng: random.Random, index: int, folder: Path) -> Outcome:
        """Send one batch, then ask for a prediction."""
        del index
        self._health.reset()
        sent: list[tuple[str, bytes | str]] = []
        problems = []
        while len(sent) < _BATCH:
            # A connection takes one message or several, and may ask to be kept after an error.
            burst = [hostile.message(rng, _request(rng)) for _ in range(rng.choice((1, 1, 4, 10)))]
            sent += burst
            if rng.random() < 0.2:
                hostile.raw_frames(HOST, self._port, rng)
            problems += self._send(burst, _KEEP if rng.random() < 0.8 else {})
        # What counts is the state of the server afterwards.
        problems += filter(None, [self._ask(rng), self._health.problem(), self._size_problem()])
        if not problems:
            return Outcome("policy server", "survived", "answered or refused", count=len(sent))
        for number, (name, message) in enumerate(sent):
            data = message.encode(errors="surrogatepass") if isinstance(message, str) else message
            (folder / f"{number:03d}_{name}.bin").write_bytes(data)
        return Outcome("policy server", "lost", problems[0].split(":")[0], "; ".join(problems), count=1)

    def notes(self) -> list[str]:
        """Return the longest wait for health and the largest size."""
        return [
            f"messages: /healthz took at most {1000 * self._health.longest_s:.0f} ms, the server grew from "
            f"{getattr(self, '_base_mb', 0):.0f} to at most {self._largest_mb:.0f} MB"
        ]

    def close(self) -> None:
        """End the server."""
        self._stack.close()

    # ---- one batch ---------------------------------------------------------------------------------------------------

    def _send(self, messages: list[tuple[str, bytes | str]], headers: dict[str, str]) -> list[str]:
        """Send messages over one connection and judge the replies."""
        problems: list[str] = []
        try:
            with self._connect(headers) as connection:
                for name, message in messages:
                    connection.send(message)
                    if name.startswith("closing"):
                        # Vanish while the server works on it.
                        break
                    problems += _reply_problems(name, connection.recv(timeout=_REPLY_S))
        except websockets.exceptions.ConnectionClosed:
            # The server may end a connection that sends nonsense.
            pass
        except TimeoutError:
            problems.append(f"no answer: to '{name}' in {_REPLY_S:g} s")
        return problems

    def _connect(self, headers: dict[str, str]) -> Any:
        sock = socket.create_connection((HOST, self._port), timeout=_REPLY_S)
        connection = websockets.sync.client.connect(
            f"ws://{HOST}", sock=sock, compression=None, max_size=None, additional_headers=headers
        )
        connection.recv(timeout=_REPLY_S)  # the server's metadata
        return connection

    def _ask(self, rng: random.Random) -> str | None:
        """Send a well-formed request and return what is wrong with the answer."""
        request = _request(rng)
        try:
            with self._connect(_KEEP) as connection:
                connection.send(msgpack_numpy.packb(request))
                reply = connection.recv(timeout=_REPLY_S)
        except (OSError, websockets.exceptions.WebSocketException) as e:
            return f"well-formed request: {type(e).__name__} {e}"
        if isinstance(reply, str):
            return f"well-formed request: {reply[:300]}"
        actions = msgpack_numpy.unpackb(reply)["actions"]
        # The model repeats the normalized state, and the joints of its actions are relative to the state.
        grippers = np.isin(np.arange(spec.NUM_DIMS), spec.GRIPPER_DIMS)
        expected = np.where(grippers, request["state"], 2 * request["state"])
        if actions.shape[1:] != expected.shape or not np.allclose(actions, expected, atol=_ATOL):
            return f"well-formed request: answered with {actions[0]}, expected {expected}"
        return None

    def _memory_mb(self) -> float:
        used_mb = psutil.Process(self._server.pid).memory_info().rss / 2**20
        self._largest_mb = max(self._largest_mb, used_mb)
        return used_mb

    def _size_problem(self) -> str | None:
        if self._server.poll() is not None:
            return f"server ended: exit code {self._server.returncode}"
        used_mb = self._memory_mb()
        if used_mb > self._base_mb + _MAX_GROWTH_MB:
            return f"memory: {used_mb:.0f} MB, {self._base_mb:.0f} MB at the start"
        return None


class Health:
    """Asks a server for its health all the time."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._worst_s = 0.0
        self._error: str | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, port: int) -> None:
        """Begin to ask."""
        self._thread = threading.Thread(target=self._ask, args=(f"http://{HOST}:{port}/healthz",), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop asking."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def reset(self) -> None:
        """Forget earlier answers."""
        self._worst_s, self._error = 0.0, None

    def problem(self) -> str | None:
        """Return what was wrong since `reset`."""
        if self._error is not None:
            return f"healthz: {self._error}"
        return f"healthz: took {self._worst_s:.1f} s" if self._worst_s > _HEALTH_S else None

    def _ask(self, url: str) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._done.wait(_HEALTH_PERIOD_S):
            began_s = time.monotonic()
            try:
                with opener.open(url, timeout=_REPLY_S) as reply:
                    reply.read()
            except OSError as e:
                self._error = f"{type(e).__name__} {e}"
            took_s = time.monotonic() - began_s
            self._worst_s = max(self._worst_s, took_s)
            self.longest_s = max(self.longest_s, took_s)


def _request(rng: random.Random) -> dict[str, Any]:
    """Return a request as the robot's client sends it."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    images = {name: numbers.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in spec.CAMERAS}
    return {"state": numbers.uniform(0.05, 0.95, spec.NUM_DIMS), "images": images, "prompt": "put the cube away"}


def _reply_problems(name: str, reply: bytes | str) -> list[str]:
    """Return what is wrong with a reply."""
    if isinstance(reply, bytes):
        actions = msgpack_numpy.unpackb(reply)["actions"]
        if np.isfinite(actions).all():
            return []
        return [f"not finite: the answer to '{name}'"]
    try:
        error = json.loads(reply)[protocol.ERROR_KEY]
    except (ValueError, KeyError, TypeError):
        error = {"code": "", "message": reply}
    if error["code"] == protocol.INTERNAL or "internal error" in error["message"]:
        return [f"internal error: to '{name}': {error['message'][:200]}"]
    if "\n" in error["message"] or "Traceback" in error["message"]:
        return [f"not one line: to '{name}': {error['message'][:200]}"]
    return []
