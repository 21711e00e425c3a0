"""One client's connection, whose requests are answered in order."""

import asyncio
import collections
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import json
import logging
import time
import traceback
from typing import Any

from websockets.exceptions import ConnectionClosedError
from websockets.frames import CloseCode

from openpi.serving import endpoints
from openpi.serving import request_errors
from openpi.serving import requests
from openpi.serving.fair_connection import FairConnection
from openpi.serving.inference_worker import Inference
from openpi.serving.metrics import PHASES
from openpi.serving.observation_contract import check_finite
from openpi.serving.request_errors import OverloadedError
from openpi.serving.request_errors import StoppingError
from openpi.serving.request_errors import SupersededError
from openpi.serving.request_errors import TooLateError
from openpi.serving.requests import Request
from openpi.serving.service import Service
from openpi.shared.errors import UserError
from openpi.shared.printable import PrintableRecords
from openpi_client import msgpack_numpy
from openpi_client import protocol

logger = logging.getLogger(__name__)
logger.addFilter(PrintableRecords())

# Requests that one client may have under way. Beyond that, the connection is not read and TCP makes the client wait.
_MAX_UNDER_WAY = 4

# Memory of all requests under way. 64 waiting requests of four raw 480x640 images are a quarter of it.
_MAX_BYTES_UNDER_WAY = 2**30

# How long a client may leave its replies unread. A reply is small, so only a client that has not read for minutes gets there.
_UNREAD_LIMIT_S = 30.0


@dataclasses.dataclass(eq=False)
class _Exchange:
    """A request that has arrived, until its reply has been sent."""

    waited_from_s: float  # when the server was ready to receive it
    arrived_s: float
    deadline_s: float | None = None
    request_id: int | None = None
    job: "concurrent.futures.Future[Inference] | None" = None
    inference: "asyncio.Future[Inference] | None" = None  # of the same job
    error: Exception | None = None  # known before any inference
    decode_ms: float = 0.0
    num_bytes: int = 0  # counted for it in `Service.bytes_under_way`


class Session:
    """Serves one connected client until it leaves."""

    def __init__(self, websocket: FairConnection, service: Service) -> None:
        self._websocket = websocket
        self._service = service
        self._peer = peer_name(websocket)
        self._policy = service.new_client_policy()
        self._survives_errors = websocket.request is not None and endpoints.survives_errors(websocket.request)
        self._under_way: collections.deque[_Exchange] = collections.deque()
        self._arrived: asyncio.Queue[_Exchange] = asyncio.Queue(_MAX_UNDER_WAY)
        self._prev_total_ms: float | None = None
        self._said: set[str] = set()

    async def run(self) -> None:
        """Send the metadata, then answer requests until the client leaves."""
        await self._send(msgpack_numpy.packb(self._service.metadata))
        # Receiving and answering run side by side, so that a newer observation can replace a waiting one.
        tasks = {
            asyncio.ensure_future(work) for work in (self._receive(), self._answer(), self._websocket.wait_closed())
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            # Nobody is left to receive the answers.
            for exchange in self._under_way:
                self._service.num_under_way -= 1
                self._hold(exchange, 0)
                # The job itself is canceled, because the inference would reach it only on the next turn of the event loop.
                if exchange.job is not None:
                    exchange.job.cancel()
                if exchange.inference is not None:
                    exchange.inference.cancel()
        # The error of every task is retrieved, because asyncio warns about those that are not.
        if found := [error for task in done if (error := task.exception()) is not None]:
            raise found[0]

    async def _receive(self) -> None:
        while True:
            waited_from_s = time.monotonic()
            message = await self._websocket.receive()
            exchange = _Exchange(waited_from_s, time.monotonic())
            self._service.metrics.num_requests += 1
            self._service.num_under_way += 1
            self._hold(exchange, len(message))
            self._under_way.append(exchange)
            try:
                self._submit(exchange, await self._read(message))
            except Exception as e:
                exchange.error = e
            # While this waits, nothing may keep the message alive.
            del message
            await self._arrived.put(exchange)

    def _hold(self, exchange: _Exchange, num_bytes: int) -> None:
        """Count the memory that a request takes now."""
        self._service.bytes_under_way += num_bytes - exchange.num_bytes
        exchange.num_bytes = num_bytes

    async def _read(self, message: bytes | memoryview | str) -> Request:
        if self._service.is_draining:
            raise StoppingError("server: stopping. Connect again when it is back")
        if self._service.bytes_under_way > _MAX_BYTES_UNDER_WAY:
            raise OverloadedError(
                f"server: requests of {_MAX_BYTES_UNDER_WAY // 2**20} MB are under way, expected less. Try again later"
            )
        # A request that takes long to read must not hold up the other clients. A usual one is faster to read at once.
        if requests.is_light(message):
            return requests.read(message, self._service.contract)
        return await asyncio.wrap_future(self._service.reader.submit(message, client=self))

    def _submit(self, exchange: _Exchange, request: Request) -> None:
        self._say(request.doubts)
        self._hold(exchange, request.num_bytes)
        exchange.request_id = request.request_id
        if request.replaces_older:
            self._drop_waiting(exchange)
        if request.deadline_s is not None:
            exchange.deadline_s = exchange.arrived_s + request.deadline_s
        exchange.job = self._service.worker.submit(
            request.observation, client=self, policy=self._policy, deadline_s=exchange.deadline_s
        )
        exchange.inference = asyncio.wrap_future(exchange.job)
        exchange.decode_ms = 1000 * (time.monotonic() - exchange.arrived_s)
        self._service.last_observation = request.observation

    def _say(self, doubts: Sequence[str]) -> None:
        """Report what is odd about this client, once per connection."""
        for doubt in doubts:
            # The numbers in it change with every request.
            subject = doubt.partition(":")[0]
            if subject not in self._said:
                self._said.add(subject)
                self._service.note(f"{self._peer}: {doubt}")

    async def _send(self, message: bytes | str) -> None:
        """Send a message, and leave a client that does not read.

        The library's own pings wait behind the unread replies, so they would never find out.

        Raises:
            ConnectionClosed: The client has left, or was left.
        """
        try:
            await asyncio.wait_for(self._websocket.send(message), _UNREAD_LIMIT_S)
        except asyncio.TimeoutError:  # another class than TimeoutError on Python 3.10
            logger.warning("%s: has not read its replies for %g s, disconnected", self._peer, _UNREAD_LIMIT_S)
            self._websocket.transport.abort()
            raise ConnectionClosedError(None, None) from None

    def _drop_waiting(self, newest: _Exchange) -> None:
        for exchange in self._under_way:
            if exchange is not newest and exchange.job is not None and exchange.job.cancel():
                exchange.error = SupersededError("request: dropped, a newer observation of this client replaced it")

    async def _answer(self) -> None:
        while True:
            exchange = await self._arrived.get()
            try:
                reply = await self._reply(exchange)
            except Exception as e:
                await self._send_error(e, exchange)
                if not self._survives_errors:
                    await self._websocket.close(CloseCode.INTERNAL_ERROR, "the error is in the previous message")
                    return
            else:
                await self._send(reply)
                # As in openpi, this includes the wait for the request.
                self._prev_total_ms = 1000 * (time.monotonic() - exchange.waited_from_s)
            self._under_way.remove(exchange)
            self._service.num_under_way -= 1
            self._hold(exchange, 0)

    async def _reply(self, exchange: _Exchange) -> bytes:
        inference = await self._inference_of(exchange)
        computed_s = time.monotonic()
        check_finite({"actions": inference.result.get("actions")}, "policy")
        timing = self._timing(exchange, inference, computed_s)
        answer = {**inference.result, protocol.SERVER_TIMING_KEY: timing}
        if exchange.request_id is not None:
            answer[protocol.REPLY_OPTIONS_KEY] = {protocol.REQUEST_ID_OPTION: exchange.request_id}
        reply = msgpack_numpy.packb(answer)
        phases_ms = {phase: timing[f"{phase}_ms"] for phase in PHASES}
        self._service.metrics.count_answer(phases_ms, batch_size=inference.batch_size)
        return reply

    async def _inference_of(self, exchange: _Exchange) -> Inference:
        inference = exchange.inference
        if inference is not None:
            limit_s = None if exchange.deadline_s is None else max(0.0, exchange.deadline_s - time.monotonic())
            await asyncio.wait({inference}, timeout=limit_s)
        if exchange.error is not None:
            raise exchange.error
        assert inference is not None, "a request without an inference has an error"
        if not inference.done() or inference.cancelled():
            inference.cancel()
            raise TooLateError("request: not answered, its deadline has passed. Allow more time or ask less often")
        return inference.result()

    def _timing(self, exchange: _Exchange, inference: Inference, computed_s: float) -> dict[str, float]:
        """Return durations in ms.

        They are openpi's own (`infer_ms`, `prev_total_ms`) and all phases of this request.
        """
        policy = inference.result.get(protocol.POLICY_TIMING_KEY) or {}
        now_s = time.monotonic()
        timing = {
            "infer_ms": inference.infer_ms,
            "queue_ms": inference.queue_ms,
            "preprocess_ms": exchange.decode_ms + policy.get("preprocess_ms", 0.0),
            "model_ms": policy.get("infer_ms", inference.infer_ms),
            "postprocess_ms": 1000 * (now_s - computed_s) + policy.get("postprocess_ms", 0.0),
            "total_ms": 1000 * (now_s - exchange.arrived_s),
        }
        if self._prev_total_ms is not None:
            timing["prev_total_ms"] = self._prev_total_ms
        return timing

    async def _send_error(self, error: Exception, exchange: _Exchange) -> None:
        code, message = request_errors.describe(error)
        self._service.metrics.num_errors[code] += 1
        if isinstance(error, UserError):
            logger.warning("%s: request refused: %s", self._peer, message)
        else:
            logger.error("%s: request failed", self._peer, exc_info=error)
        details = "".join(traceback.format_exception(error)) if self._service.debug else ""
        if self._survives_errors:
            body: dict[str, Any] = {"code": code, "message": message} | ({"traceback": details} if details else {})
            if exchange.request_id is not None:
                body[protocol.REQUEST_ID_OPTION] = exchange.request_id
            await self._send(json.dumps({protocol.ERROR_KEY: body}))
        else:
            await self._send(details or message)


def peer_name(websocket: FairConnection) -> str:
    """Return the address of the client, for log lines."""
    host, port = (websocket.remote_address or ("unknown client", "?"))[:2]
    return f"{host}:{port}"
