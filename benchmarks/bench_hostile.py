"""Measure whether a policy server stays responsive while hostile requests arrive.

    python benchmarks/bench_hostile.py                       # Every kind, about three minutes.
    python benchmarks/bench_hostile.py --kinds jpegs keys --tree /path/to/another/checkout

All requests are well-formed and large. Each kind gets a fresh server, and ten connections send it a hundred requests.
Meanwhile `/healthz` is asked in turn of this server and of an idle one. The idle server is the control: what it takes longer
is the machine's load, not the server's work.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import select
import socket
import subprocess
import sys
import threading
import time

import msgpack
import numpy as np
import rich.console
import rich.table
import tyro
from websockets.frames import Frame
from websockets.frames import Opcode

from openpi_client import image_tools
from openpi_client import msgpack_numpy

HOST = "127.0.0.1"
ROOT = pathlib.Path(__file__).parents[1]

_HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-OpenPI-Keep-Connection: 1\r\n\r\n"
)
_PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
_PROBE_PAUSE_S = 0.01


@dataclasses.dataclass
class Args:
    """What to send, and to which server."""

    # Kinds of requests. All of them by default.
    kinds: tuple[str, ...] = ()
    # Requests of each kind, and connections that send them.
    requests: int = 100
    connections: int = 10
    # Size of a request, MB.
    size_mb: float = 20.0
    # Stop sending a kind after this time, s. An older server may need minutes for one request.
    limit_s: float = 60.0
    # Repetitions. The table has the median of each figure.
    repeats: int = 1
    # Checkout whose server is measured.
    tree: pathlib.Path = ROOT
    # Write the figures to this JSON file as well.
    out: pathlib.Path | None = None


def main(args: Args) -> None:
    """Measure /healthz of a policy server under hostile requests."""
    makers = _kinds(int(1e6 * args.size_mb))
    rows = []
    with _server(args.tree) as idle_port:
        for kind in args.kinds or tuple(makers):
            frame = Frame(Opcode.BINARY, makers[kind]()).serialize(mask=True)
            measured = [_measure(args, frame, idle_port) for _ in range(args.repeats)]
            median = {name: float(np.median([each[name] for each in measured])) for name in measured[0]}
            rows.append({"kind": kind, **median})
            print(json.dumps(rows[-1]), flush=True)
    _show(rows)
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


def _show(rows: list[dict]) -> None:
    title = f"/healthz, ms, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"
    table = rich.table.Table(
        "requests", "answered", "s", "median", "99%", "longest", "idle: median", "99%", "longest", title=title
    )
    names = ("busy_median", "busy_p99", "busy_max", "idle_median", "idle_p99", "idle_max")
    for row in rows:
        figures = (f"{row[name]:.1f}" for name in names)
        table.add_row(row["kind"], f"{row['answered']:.0f}", f"{row['seconds']:.1f}", *figures)
    rich.console.Console(width=130).print(table)


def _request() -> dict:
    images = {camera: np.zeros((224, 224, 3), np.uint8) for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist")}
    return {"state": np.linspace(0, 1, 14), "images": images, "prompt": "put the cube into the tray"}


def _kinds(size: int) -> dict[str, Callable[[], bytes]]:
    """Return what makes a message of each kind.

    The names ending in "within" keep to the budgets of a server that has some, so that it does all of their work.
    """
    side = int((size / 3) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (2800, 2800, 3), dtype=np.uint8)

    def pack(**changes: object) -> bytes:
        return msgpack_numpy.packb({**_request(), **changes})

    def padded(**changes: object) -> bytes:
        missing = size - len(pack(**changes))
        return pack(**changes, padding=np.zeros(max(1, missing), np.uint8))

    def jpegs() -> bytes:
        jpeg = image_tools.encode_jpeg(pixels, 60)
        return padded(images={"cam_high": jpeg, "cam_left_wrist": jpeg})

    return {
        "nested lists": lambda: pack(x=[[0.5] * 1000] * (size // 9000)),
        "nested lists, within": lambda: padded(x=[[0.5] * 1000] * 8),
        "state as a list, within": lambda: padded(state=[0.5] * 7_500),
        "many keys": lambda: msgpack.packb({f"key{n:08d}": n for n in range(size // 17)}),
        "many keys, within": lambda: padded(**{f"key{n:08d}": n for n in range(3_900)}),
        "small arrays": lambda: pack(x=[np.zeros(8)] * (size // 110)),
        "small arrays, within": lambda: padded(x=[np.zeros(8)] * 700),
        "one large image": lambda: pack(images={"cam_high": np.zeros((3, side, side), np.uint8)}),
        "large float images": lambda: pack(
            images={camera: np.zeros((side // 4, side // 4, 3), np.float32) for camera in _request()["images"]},
            padding=np.zeros(size // 4, np.uint8),
        ),
        "large JPEGs": jpegs,
        "deep nesting": lambda: b"\x91" * size + b"\x00",
    }


@contextlib.contextmanager
def _server(tree: pathlib.Path) -> Iterator[int]:
    """Start the server of `bench_serve.py`, and yield its port."""
    paths = (tree, tree / "third_party/openpi/src", tree / "third_party/openpi/packages/openpi-client/src")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, str(tree / "benchmarks/bench_serve.py"), "--serve-ms", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _measure(args: Args, frame: bytes, idle_port: int) -> dict[str, float]:
    """Return the times of /healthz, ms, while `frame` is sent."""
    with _server(args.tree) as port:
        mine, theirs = multiprocessing.Pipe()
        prober = multiprocessing.Process(target=_probe, args=(theirs, port, idle_port), daemon=True)
        prober.start()
        mine.recv()
        start_s = time.monotonic()
        answered = _send_all(args, frame, port)
        seconds = time.monotonic() - start_s
        mine.send("stop")
        busy, idle = mine.recv()
        prober.join()
    figures = {"answered": float(answered), "seconds": seconds, "probes": float(len(busy))}
    for name, times in (("busy", busy), ("idle", idle)):
        figures |= {
            f"{name}_median": np.median(times),
            f"{name}_p99": np.percentile(times, 99),
            f"{name}_max": max(times),
        }
    return {name: float(value) for name, value in figures.items()}


def _probe(pipe: multiprocessing.connection.Connection, port: int, idle_port: int) -> None:
    """Ask both servers in turn until the pipe says stop."""
    busy: list[float] = []
    idle: list[float] = []
    pipe.send("ready")
    while not pipe.poll():
        for times, to in ((busy, port), (idle, idle_port)):
            start_s = time.perf_counter()
            with socket.create_connection((HOST, to), timeout=600) as sock:
                sock.sendall(_PROBE)
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            times.append(1000 * (time.perf_counter() - start_s))
            time.sleep(_PROBE_PAUSE_S)
    pipe.send((busy, idle))


def _send_all(args: Args, frame: bytes, port: int) -> int:
    """Send all requests over several connections, and return how many were answered."""
    end_s = time.monotonic() + args.limit_s
    counts = [0] * args.connections

    def send(number: int) -> None:
        # The server may close a connection that asks too much.
        with contextlib.suppress(ConnectionError), socket.create_connection((HOST, port), timeout=600) as sock:
            sock.sendall(_HANDSHAKE)
            # The metadata follows the handshake.
            time.sleep(0.5)
            sock.recv(2**20)
            for _ in range(args.requests // args.connections):
                sock.sendall(frame)
                # An answer of a few kB arrives at once.
                received = b""
                while not received:
                    if time.monotonic() > end_s:
                        return
                    if select.select([sock], [], [], 0.1)[0]:
                        received = sock.recv(2**20)
                        if not received:
                            return
                counts[number] += 1

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(args.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.1, end_s - time.monotonic()))
    return sum(counts)


if __name__ == "__main__":
    main(tyro.cli(Args, description=main.__doc__))
