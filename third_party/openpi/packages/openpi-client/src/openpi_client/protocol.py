"""Names that a policy server and its clients share beside the messages themselves.

A connection starts with one binary message of the server, its metadata. Then each request (a binary message, one packed
observation) is answered in order by one reply: binary for a result, text for an error.
"""

KEEP_CONNECTION_HEADER = "X-OpenPI-Keep-Connection"
"""Handshake header. A client that sends it with the value `KEEP_CONNECTION_VALUE` asks the server to go on after an error
reply; a server that will echoes it. Without it the server closes with code 1011 after an error, as openpi always did."""

KEEP_CONNECTION_VALUE = "1"

AUTHORIZATION_HEADER = "Authorization"
"""Handshake header that carries `Api-Key <key>`."""

ALIVE_PATH = "/healthz"
"""GET answers 200 as soon as the process serves, ready or not."""

READY_PATH = "/readyz"
"""GET answers 200 when requests are answered without delay, else 503."""

SERVER_TIMING_KEY = "server_timing"
"""Key of a reply: a dict of durations in ms, measured by the server."""

POLICY_TIMING_KEY = "policy_timing"
"""Key of a reply: a dict of durations in ms, measured by the policy."""
