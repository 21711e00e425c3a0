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

METRICS_PATH = "/metrics"
"""GET answers counters and latency histograms in Prometheus' text format."""

STATUS_PATH = "/"
"""GET answers a page for people: what is served, how fast, and the last pictures seen."""

SERVER_TIMING_KEY = "server_timing"
"""Key of a reply: a dict of durations in ms, measured by the server."""

POLICY_TIMING_KEY = "policy_timing"
"""Key of a reply: a dict of durations in ms, measured by the policy."""

PROTOCOL_KEY = "protocol"
"""Key of the metadata: `{"features": [...]}`, what a server understands beyond the original's messages."""

FEATURE_JPEG_IMAGES = "jpeg_images"
"""Bytes that are a JPEG may stand wherever an observation has an image; the policy sees uint8 (h, w, 3), RGB."""

FEATURE_DEADLINE = "deadline"
FEATURE_REPLACE_OLDER = "replace_older"
FEATURE_ERROR_CODES = "error_codes"
FEATURE_TIMING = "timing"
FEATURE_KEEP_CONNECTION = "keep_connection"
FEATURE_RTC = "rtc"
"""Real-time chunking, with the methods that `RTC_KEY` lists."""

REQUEST_OPTIONS_KEY = "openpi_request"
"""Key of a request: a dict of options about the request itself, taken out before the policy sees the observation. A server
that does not announce a feature would pass its option on to the policy, so clients send only what is announced."""

DEADLINE_OPTION = "deadline_ms"
"""Option: answer within so many ms of the arrival, or not at all (`TOO_LATE`)."""

REPLACE_OLDER_OPTION = "replace_older"
"""Option: True drops the requests of this connection that still wait (`SUPERSEDED`)."""

RTC_KEY = "rtc"
"""Key of a request: what is left of the previous chunk, a dict; see `openpi.policies.left_over`. Key of the metadata:
`{"methods": [...], "schedules": [...]}`, and `max_prefix_delay` where the method "prefix" is among them."""

# Codes of errors. A client that keeps its connection receives errors as the JSON text `{"error": {"code": ..., "message": ...}}`,
# with "traceback" beside it from a debugging server; any other client receives the message alone, as plain text.
ERROR_KEY = "error"
BAD_REQUEST = "bad_request"
INTERNAL = "internal"
TOO_LATE = "too_late"
SUPERSEDED = "superseded"
OVERLOADED = "overloaded"
STOPPING = "stopping"
