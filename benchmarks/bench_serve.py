"""How much time a policy server adds to its model, and whether it stays fair, responsive and small. Loopback, one machine.

    python benchmarks/bench_serve.py                        # everything, about three minutes
    python benchmarks/bench_serve.py --client-python .venv-client/bin/python    # and the published openpi-client

The model is one that computes nothing, behind the whole chain of the RealMan robot (checks, resizing, tokens, normalisation),
in a server process of its own.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import psutil
import tyro

from openpi_client import memory
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist", "cam_low")

# What the published client is asked to do, in its own environment; prints the sum of the actions and its versions.
_PYPI_CLIENT = """
import sys, importlib.metadata, numpy, websockets
from openpi_client import websocket_client_policy
client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
images = {name: numpy.full((224, 224, 3), 7, numpy.uint8) for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")}
for _ in range(20):
    actions = client.infer({"state": numpy.linspace(0, 1, 14), "images": images, "prompt": "wave"})["actions"]
assert actions.shape[1] == 14 and client.get_server_metadata()["robot"] == "realman_rm65_dual"
try:
    client.infer({"state": numpy.zeros(13), "images": images, "prompt": "wave"})
except RuntimeError as e:
    print(f"openpi-client {importlib.metadata.version('openpi-client')}, websockets {websockets.__version__}: "
          f"20 answers right, a bad one told: {str(e).splitlines()[-1]}")
"""


@dataclasses.dataclass
class Args:
    """What to measure."""

    # Requests of each overhead measurement.
    requests: int = 300
    # Seconds of the fairness measurement.
    seconds: float = 60.0
    # Requests of the memory measurement.
    memory_requests: int = 10_000
    # Python of an environment with the published openpi-client.
    client_python: pathlib.Path | None = None
    # Write the figures to this JSON file as well.
    out: pathlib.Path | None = None
    # Be the server, with a model that takes so many ms (used by the benchmark itself).
    serve_ms: float | None = None


def main(args: Args) -> None:
    """Measure a policy server over loopback."""
    if args.serve_ms is not None:
        serve(args.serve_ms)
        return
    memory.keep_freed_memory()  # as the robot's program does
    figures: dict[str, object] = {}
    with _server() as (port, process):
        for name, cameras, size in (("3 x 224x224", 3, (224, 224)), ("4 x 480x640", 4, (480, 640))):
            figures[f"overhead, {name}"] = overhead(port, _request(cameras, size), args.requests)
        if args.client_python is not None:
            command = [str(args.client_python), "-c", _PYPI_CLIENT, str(port)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": ""})
            figures["published client"] = run.stdout.strip() or run.stderr.strip().splitlines()[-1]
        figures["memory"] = memory_use(port, process, args.memory_requests)
    with _server(model_ms=20) as (port, _):
        figures["8 clients, 20 ms model"] = fairness(port, 8, args.seconds)
    with _server(model_ms=10_000) as (port, _):
        figures["healthz during a 10 s inference"] = health(port)
    for name, value in figures.items():
        print(f"{name}: {_line(value)}")
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


def overhead(port: int, request: dict, count: int) -> dict[str, float]:
    """Round trip less the model's own time, ms, and where the server's part of it went (medians)."""
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
            time.sleep(0.002)  # a robot asks once in a while; let the machine come to rest
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
    """Answers of each of several clients that ask as fast as they can, and the longest that one had to wait."""
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
    """Times of /healthz while the policy is in its inference."""
    with WebsocketClientPolicy(HOST, port) as client:
        inference = threading.Thread(target=client.infer, args=(_request(3, (224, 224)),))
        inference.start()
        time.sleep(0.5)
        times_ms = []
        while inference.is_alive():
            start_s = time.perf_counter()
            with urllib.request.urlopen(f"http://{HOST}:{port}/healthz", timeout=30) as response:
                response.read()
            times_ms.append(1000 * (time.perf_counter() - start_s))
            time.sleep(0.05)
        inference.join()
    return {"count": len(times_ms), "median_ms": np.median(times_ms), "longest_ms": max(times_ms)}


def memory_use(port: int, process: psutil.Process, count: int) -> dict[str, float]:
    """Resident memory of the server, MB, after a tenth of the requests and after all."""
    request = _request(3, (224, 224))
    sizes_mb = []
    with WebsocketClientPolicy(HOST, port) as client:
        for i in range(count):
            client.infer(request)
            if i + 1 in (count // 10, count):
                sizes_mb.append(process.memory_info().rss / 2**20)
    return {"after_a_tenth_mb": sizes_mb[0], "after_all_mb": sizes_mb[1], "requests": count}


def serve(model_ms: float) -> None:
    """Be the server: print the port, serve until killed."""
    memory.keep_freed_memory()  # as scripts/serve_policy.py does
    import jax.numpy as jnp

    from openpi import transforms
    from openpi.models import model as _model
    from openpi.policies import policy
    from openpi.policies import realman_policy
    from openpi.serving import contract_metadata
    from openpi.serving.websocket_policy_server import WebsocketPolicyServer
    from openpi.training import config

    class Still(_model.BaseModel):
        """Repeats the state."""

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
        transforms=[*data.data_transforms.inputs, transforms.Normalize(stats), *data.model_transforms.inputs],
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


def _line(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {number:.4g}" for name, number in value.items())
    return str(value)


if __name__ == "__main__":
    main(tyro.cli(Args, description=main.__doc__))
