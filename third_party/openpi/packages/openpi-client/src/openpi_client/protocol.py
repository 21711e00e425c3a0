"""Names that a policy server and its clients share.

A connection starts with one binary message from the server, its metadata. Then each request (a binary message with one packed
observation) is answered in order by one reply, which is binary for a result and text for an error.
"""

from collections.abc import Mapping
from typing import Any

KEEP_CONNECTION_HEADER = "X-OpenPI-Keep-Connection"
"""Handshake header. A client that sends it with the value `KEEP_CONNECTION_VALUE` asks the server to keep the connection after
an error reply. A server that agrees echoes it. Without it, the server closes with code 1011 after an error, as openpi always
did."""

KEEP_CONNECTION_VALUE = "1"

AUTHORIZATION_HEADER = "Authorization"
"""Handshake header that carries `Api-Key <key>`."""

ALIVE_PATH = "/healthz"
"""GET returns 200 as soon as the process serves, ready or not."""

READY_PATH = "/readyz"
"""GET returns 200 when requests are answered without delay, else 503."""

METRICS_PATH = "/metrics"
"""GET returns counters and latency histograms in Prometheus' text format."""

STATUS_PATH = "/"
"""GET returns a page for people: what is served, how fast, and the last images seen."""

SERVER_TIMING_KEY = "server_timing"
"""Key of a reply: a dict of durations in ms, measured by the server."""

POLICY_TIMING_KEY = "policy_timing"
"""Key of a reply: a dict of durations in ms, measured by the policy."""

PROTOCOL_KEY = "protocol"
"""Key of the metadata: `{"features": [...]}`, what a server supports in addition to openpi's original messages."""

FEATURE_JPEG_IMAGES = "jpeg_images"
"""An observation may hold any image as the bytes of a JPEG. The policy sees uint8 (h, w, 3), RGB."""

FEATURE_DEADLINE = "deadline"
FEATURE_REPLACE_OLDER = "replace_older"
FEATURE_ERROR_CODES = "error_codes"
FEATURE_TIMING = "timing"
FEATURE_REQUEST_ID = "request_id"
FEATURE_KEEP_CONNECTION = "keep_connection"
FEATURE_RTC = "rtc"
"""Real-time chunking, with the methods that `RTC_KEY` lists."""

REQUEST_OPTIONS_KEY = "openpi_request"
"""Key of a request: a dict of options about the request itself, removed before the policy sees the observation. A server that
does not announce a feature would pass its option to the policy, so clients send only options of announced features."""

DEADLINE_OPTION = "deadline_ms"
"""Option: answer within this many ms of the arrival, or not at all (`TOO_LATE`)."""

REPLACE_OLDER_OPTION = "replace_older"
"""Option: True drops the waiting requests of this connection (`SUPERSEDED`)."""

REQUEST_ID_OPTION = "request_id"
"""Option: an integer from 0 to 2**63 - 1 that the reply repeats, so that no other reply is taken for it."""

REPLY_OPTIONS_KEY = "openpi_reply"
"""Key of a reply to a request with `REQUEST_ID_OPTION`: `{"request_id": ...}`. An error repeats the number inside its
`ERROR_KEY`, unless the request could not be read."""

RTC_KEY = "rtc"
"""Key of a request: a dict with the rest of the previous chunk, described in `openpi.policies.left_over`. Key of the metadata:
`{"methods": [...], "schedules": [...]}`, and `max_prefix_delay` if the method "prefix" is among them."""

# Error codes. A client that keeps its connection receives errors as the JSON text `{"error": {"code": ..., "message": ...}}`,
# and a debugging server adds "traceback" to it. Any other client receives only the message, as plain text.
ERROR_KEY = "error"
BAD_REQUEST = "bad_request"
INTERNAL = "internal"
TOO_LATE = "too_late"
SUPERSEDED = "superseded"
OVERLOADED = "overloaded"
STOPPING = "stopping"


def features(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the features that a server announces.

    Another server may mean something else by the same key. Then it announces none.
    """
    announced = metadata.get(PROTOCOL_KEY)
    names = announced.get("features") if isinstance(announced, Mapping) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list | tuple) else ()
