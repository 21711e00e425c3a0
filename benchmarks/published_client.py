"""Test openpi's published client against this project's server.

`bench_serve.py` runs this. The first call installs `requirements/published-client.lock` into `.venv-published-client`.
"""

import hashlib
import pathlib
import subprocess
import sys

import numpy as np

from openpi_client import msgpack_numpy

_PROJECT = pathlib.Path(__file__).resolve().parents[1]
_VENV = _PROJECT / ".venv-published-client"
_LOCK = _PROJECT / "requirements" / "published-client.lock"

# What the client does. It prints its versions and a hash of what it sent, to compare with what ours sends.
_PROGRAM = """
import hashlib, sys, importlib.metadata, numpy, websockets
from openpi_client import msgpack_numpy, websocket_client_policy
client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
images = {name: numpy.full((224, 224, 3), 7, numpy.uint8) for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")}
request = {"state": numpy.linspace(0, 1, 14), "images": images, "prompt": "wave"}
answers = [client.infer(request) for _ in range(20)]
assert all(answer["actions"].shape[1] == 14 for answer in answers)
assert {"infer_ms", "prev_total_ms"} <= answers[-1]["server_timing"].keys()
assert client.get_server_metadata()["robot"] == "realman_rm65_dual"
try:
    client.infer({**request, "state": numpy.zeros(13)})
except RuntimeError as e:
    assert "(13,), expected (14,)" in str(e), e
else:
    raise AssertionError("a bad request was answered")
print(importlib.metadata.version("openpi-client"), websockets.__version__,
      hashlib.sha256(msgpack_numpy.Packer().pack(request)).hexdigest())
"""


def check(port: int, python: pathlib.Path | None = None) -> str:
    """Return what the published client did, or why it could not run."""
    try:
        python = python or _install()
        command = [str(python), "-c", _PROGRAM, str(port)]
        # The client must not see this project's environment.
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": ""})
    except (OSError, subprocess.SubprocessError) as e:
        return f"not tried: {e}"
    if run.returncode:
        return f"FAILED: {run.stderr.strip().splitlines()[-1]}"
    client, websockets, digest = run.stdout.split()
    same = "same bytes as ours" if digest == _our_request_sha256() else "DIFFERENT BYTES than ours"
    return f"openpi-client {client} (websockets {websockets}): 20 answers right, a bad request reported, {same}"


def _install() -> pathlib.Path:
    python = _VENV / "bin" / "python"
    ready = _VENV / ".ready"
    if not (ready.is_file() and ready.stat().st_mtime > _LOCK.stat().st_mtime):
        sys.stderr.write(f"installing openpi's published client into {_VENV}\n")
        subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
        install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "-r",
            str(_LOCK),
        ]
        subprocess.run([str(python), *install], check=True, stdout=sys.stderr)
        ready.touch()
    return python


def _our_request_sha256() -> str:
    cameras = ("cam_high", "cam_left_wrist", "cam_right_wrist")
    images = {name: np.full((224, 224, 3), 7, np.uint8) for name in cameras}
    request = {"state": np.linspace(0, 1, 14), "images": images, "prompt": "wave"}
    return hashlib.sha256(msgpack_numpy.packb(request)).hexdigest()
