"""Measure the time that a policy server adds to its model.

    python benchmarks/bench_serve.py                        # Everything, about three minutes.
    python benchmarks/bench_serve.py --requests 50 --seconds 5 --memory-requests 500 --inference-seconds 2    # A quick look.

It also measures whether the server stays fair, responsive and small. Everything runs over loopback on one machine. The
model computes nothing. It is behind the whole chain of the RealMan robot (checks, resizing, tokens, normalization), in
a server process of its own.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import psutil
import published_client
import rich.console
import rich.table
import tyro

from openpi_client import memory
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist", "cam_low")

_FAIR_MODEL_MS = 20


@dataclasses.dataclass
class Args:
    """What to measure."""

    # Requests per measurement of the overhead.
    requests: int = 300
    # Clients of the fairness measurement, and how long they send requests, s.
    clients: int = 8
    seconds: float = 60.0
    # Requests of the memory measurement.
    memory_requests: int = 10_000
    # Length of the inference during which /healthz is requested, s.
    inference_seconds: float = 10.0
    # Also try openpi's published client (installed into .venv-published-client on the first run).
    published_client: bool = True
    # Write the figures to this JSON file as well.
    out: pathlib.Path | None = None
    # Run as the server, with a model that takes this many ms (used by the benchmark itself).
    serve_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    goal: str = ""
    ratio: float | None = None
    """Measured value divided by the goal: below 1 is good."""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


def main(args: Args) -> None:
    """Measure a policy server over loopback."""
    if args.serve_ms is not None:
        serve(args.serve_ms)
        return
    memory.keep_freed_memory()  # As the robot's program does.
    rows = list(measure(args))
    table = rich.table.Table("of goal", "what", "goal", "measured", title=_machine())
    for row in rows:
        table.add_row("" if row.ratio is None else f"{row.ratio:.2f}", row.what, row.goal, row.measured)
    rich.console.Console(width=150).print(table)
    if args.out is not None:
        args.out.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")


def measure(args: Args) -> Iterator[Row]:
    """Yield the rows of the table."""
    with _server() as (port, process):
        for name, cameras, size, goal_ms in (("3 x 224x224", 3, (224, 224), 2), ("4 x 480x640", 4, (480, 640), 10)):
            yield from _overhead_rows(
                f"beyond the model, {name}", goal_ms, overhead(port, _request(cameras, size), args.requests)
            )
        if args.published_client:
            yield Row("openpi's published client", published_client.check(port), "works")
        used = memory_use(port, process, args.memory_requests)
        yield Row(
            f"server's memory, request {args.memory_requests // 10:,} to {args.memory_requests:,}",
            f"{used['after_a_tenth_mb']:.1f} to {used['after_all_mb']:.1f} MB",
            "flat",
            figures=used,
        )
    with _server(model_ms=_FAIR_MODEL_MS) as (port, _):
        fair = fairness(port, args.clients, args.seconds)
        yield Row(
            f"{args.clients} clients for {args.seconds:g} s, {_FAIR_MODEL_MS} ms model: answers of each",
            f"{fair['fewest_answers']} to {fair['most_answers']} (median {fair['median_ms']:.0f} ms, longest {fair['longest_ms']:.0f} ms)",
            "none starved",
            figures=fair,
        )
    with _server(model_ms=1000 * args.inference_seconds) as (port, _):
        alive = health(port)
        yield Row(
            f"/healthz during an inference of {args.inference_seconds:g} s",
            f"longest {alive['longest_ms']:.1f} ms, median {alive['median_ms']:.1f} ms of {alive['count']}",
            "50 ms",
            alive["longest_ms"] / 50,
            alive,
        )


def _overhead_rows(what: str, goal_ms: float, spent: dict[str, float]) -> Iterator[Row]:
    phases = ("queue", "preprocess", "postprocess", "rest")
    parts = ", ".join(f"{phase} {spent[f'{phase}_ms']:.2f}" for phase in phases)
    yield Row(
        what, f"median {spent['median_ms']:.2f} ms ({parts})", f"{goal_ms} ms", spent["median_ms"] / goal_ms, spent
    )
    yield Row("  its 99%", f"{spent['p99_ms']:.2f} ms", f"{goal_ms} ms", spent["p99_ms"] / goal_ms)


def _machine() -> str:
    load = os.getloadavg()[0]
    return f"policy server over loopback, {os.cpu_count()} cores, {platform.machine()}, load {load:.1f} at the end"


def overhead(port: int, request: dict, count: int) -> dict[str, float]:
    """Return the round trip without the model's own time, ms.

    Its parts are the medians of the server's phases.
    """
    rows = []
    with WebsocketClientPolicy(HOST, port) as client:
        for _ in range(20):
            client.infer(request)
        for _ in range(count):
            start_s = time.perf_counter()
            timing = client.infer(request)["server_timing"]
            total_ms = 1000 * (time.perf_counter() - start_s)
            rows.append(
                (total_ms - timing["model_ms"], *(timing[f"{p}_ms"] for p in ("queue", "preprocess", "postprocess")))
            )
            time.sleep(0.002)  # Let the machine come to rest, because a robot asks only now and then.
    beyond, queue, preprocess, postprocess = np.array(rows).T
    return {
        "median_ms": np.median(beyond),
        "p99_ms": np.percentile(beyond, 99),
        "queue_ms": np.median(queue),
        "preprocess_ms": np.median(preprocess),
        "postprocess_ms": np.median(postprocess),
        "rest_ms": np.median(beyond - queue - preprocess - postprocess),
    }


def fairness(port: int, num_clients: int, seconds: float) -> dict[str, float]:
    """Let several clients ask as fast as they can.

    Returns the fewest and most answers of a client, and the median and longest time for an answer.
    """
    answers: list[list[float]] = [[] for _ in range(num_clients)]
    end_s = time.monotonic() + seconds

    def ask(waits_ms: list[float]) -> None:
        with WebsocketClientPolicy(HOST, port) as client:
            while time.monotonic() < end_s:
                start_s = time.perf_counter()
                client.infer(_request(3, (224, 224)))
                waits_ms.append(1000 * (time.perf_counter() - start_s))

    threads = [threading.Thread(target=ask, args=(waits_ms,)) for waits_ms in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [len(waits_ms) for waits_ms in answers]
    return {
        "fewest_answers": min(counts),
        "most_answers": max(counts),
        "median_ms": np.median(np.concatenate(answers)),
        "longest_ms": max(map(max, answers)),
    }


def health(port: int) -> dict[str, float]:
    """Return the times of /healthz during an inference."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
    with WebsocketClientPolicy(HOST, port) as client:
        inference = threading.Thread(target=client.infer, args=(_request(3, (224, 224)),))
        inference.start()
        time.sleep(0.5)
        times_ms = []
        while inference.is_alive():
            start_s = time.perf_counter()
            with direct.open(f"http://{HOST}:{port}/healthz", timeout=30) as response:
                response.read()
            times_ms.append(1000 * (time.perf_counter() - start_s))
            time.sleep(0.05)
        inference.join()
    return {"count": len(times_ms), "median_ms": np.median(times_ms), "longest_ms": max(times_ms)}


def memory_use(port: int, process: psutil.Process, count: int) -> dict[str, float]:
    """Return the server's resident memory, MB.

    It is taken after a tenth of the requests and after all.
    """
    request = _request(3, (224, 224))
    sizes_mb = []
    with WebsocketClientPolicy(HOST, port) as client:
        for i in range(count):
            client.infer(request)
            if i + 1 in (count // 10, count):
                sizes_mb.append(process.memory_info().rss / 2**20)
    return {"after_a_tenth_mb": sizes_mb[0], "after_all_mb": sizes_mb[1], "requests": count}


def serve(model_ms: float) -> None:
    """Run as the server: print the port and serve until killed."""
    memory.keep_freed_memory()  # As scripts/serve_policy.py does.
    # Health checks and other clients wait for the thread that reads a heavy request. Python's default is 5 ms each time.
    sys.setswitchinterval(0.001)
    logging.getLogger("openpi").setLevel(logging.ERROR)  # A bad request is part of the benchmark.
    import jax.numpy as jnp

    from openpi import transforms
    from openpi.models import model as _model
    from openpi.policies import policy
    from openpi.policies import policy_config
    from openpi.policies import realman_policy
    from openpi.serving import contract_metadata
    from openpi.serving.websocket_policy_server import WebsocketPolicyServer
    from openpi.training import config

    class Still(_model.BaseModel):
        """Repeat the state."""

        def compute_loss(self, rng: object, observation: object, actions: object, *, train: bool = False) -> None:
            raise AssertionError("not part of inference")

        def sample_actions(self, rng: object, observation: _model.Observation) -> object:
            return jnp.repeat(observation.state[:, None], self.action_horizon, axis=1)

    class Slow(policy.Policy):
        def infer(self, obs: dict, **kwargs: object) -> dict:
            time.sleep(model_ms / 1000)
            return super().infer(obs, **kwargs)

    train_config = config.get_config("debug_realman")
    data = train_config.data.create(None, train_config.model)
    stats = {key: transforms.NormStats(*np.split(np.arange(56.0), 4)) for key in ("state", "actions")}
    made = Slow(
        Still(train_config.model),
        transforms=[
            *data.data_transforms.inputs,
            transforms.Normalize(stats),
            *policy_config.with_resize_threads(data.model_transforms.inputs),
        ],
        output_transforms=[
            *data.model_transforms.outputs,
            transforms.Unnormalize(stats),
            *data.data_transforms.outputs,
        ],
    )
    metadata = {**(train_config.policy_metadata or {}), **contract_metadata.describe_server()}
    example = None if model_ms > 1000 else realman_policy.make_realman_example()
    server = WebsocketPolicyServer(made, HOST, 0, metadata, example=example)
    server.serve_forever(lambda _: print(server.port, flush=True))


@contextlib.contextmanager
def _server(model_ms: float = 0.0) -> Iterator[tuple[int, psutil.Process]]:
    command = [sys.executable, __file__, "--serve-ms", str(model_ms)]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield int(process.stdout.readline()), psutil.Process(process.pid)
        finally:
            process.kill()


def _request(num_cameras: int, size: tuple[int, int]) -> dict:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name in CAMERAS[:num_cameras]}
    return {"state": np.linspace(0, 1, 14), "images": images, "prompt": "put the cube into the tray"}


if __name__ == "__main__":
    main(tyro.cli(Args, description=main.__doc__))
