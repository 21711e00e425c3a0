"""Runs a policy server in a thread, for tests and notebooks.

It suits every program that needs a server only for a while.
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import time

from openpi.serving.websocket_policy_server import WebsocketPolicyServer

_POLL_S = 0.01


@contextlib.contextmanager
def serve_in_thread(
    server: WebsocketPolicyServer, *, wait_until_ready: bool = True, timeout_s: float = 120.0
) -> Iterator[WebsocketPolicyServer]:
    """Serve inside a `with` block.

    Args:
        server: A server that has not started. Its `port` is known inside the block.
        wait_until_ready: Wait for the warm-up too, not only for the port.
        timeout_s: Limit of that wait.

    Raises:
        TimeoutError: The server did not come up in time.
        Exception: Any error that stopped the server before it came up.
    """
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="policy-server") as executor:
        serving = executor.submit(server.serve_forever)
        try:
            deadline_s = time.monotonic() + timeout_s
            while not (server.listening.is_set() and (server.is_ready or not wait_until_ready)):
                if serving.done():
                    serving.result()
                    raise RuntimeError("the policy server stopped before it was ready")
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"the policy server was not ready after {timeout_s:g} s")
                time.sleep(_POLL_S)
            yield server
        finally:
            server.stop()
