"""The ingress: receives HTTP requests whole, and sends each to the replica that has most of it in its caches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from ternvl.cluster.adapters import ADAPTER, CHANGING_PATHS, refusal
from ternvl.cluster.exchange import ForwardedRequest, Message, forwarded
from ternvl.cluster.failures import Stream, response_to
from ternvl.cluster.merged_metrics import merged
from ternvl.cluster.remote import RemoteAnswer
from ternvl.cluster.routing.affinity import NONE, Affinity, affinity_of
from ternvl.cluster.routing.names import base_names
from ternvl.cluster.settings import ClusterSettings
from ternvl.errors import TernvlError, UnavailableError
from ternvl.server.errors import HTTPError

logger = logging.getLogger("ternvl.cluster")

_TRIES = 3
"""The replicas that are asked for an answer, until one of them begins it."""
_SMALL_BODY = 64 * 1024
"""The bytes of a body that is parsed on the event loop; longer ones are parsed on a thread."""
_PROBES = ("/health", "/ready")
_PROBE_SECONDS = 10.0
"""How long a probe and the metrics wait for replicas."""


class Ingress:
    """The ASGI application of the ingress."""

    def __init__(self, handle: DeploymentHandle, settings: ClusterSettings) -> None:
        """`handle` leads to the replicas."""
        self._handle = handle
        self._answer = handle.options(method_name="answer", stream=True)
        self._limit = settings.server.max_body_bytes
        self._timeout = settings.server.body_timeout
        self._names = base_names(settings)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or take part in the start and the end of the process."""
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            return
        try:
            if scope["path"] in CHANGING_PATHS:
                raise refusal()
            request = await self._read(scope, receive)
            if request is not None:
                await self._serve(request, receive, send)
        except (TernvlError, HTTPError) as error:
            await response_to(error, scope)(scope, receive, send)

    async def _read(self, scope: Any, receive: Any) -> ForwardedRequest | None:
        """Return the request with its whole body; None if the client has left. Raises HTTPError past the time limit."""
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._body(receive)
        except TimeoutError:
            raise HTTPError(408, f"The request body did not arrive within {self._timeout:g} seconds.") from None
        if body is None:
            return None
        affinity = await self._affinity(scope, body)
        fields = forwarded(scope)
        if affinity.adapter is not None:
            fields[ADAPTER] = affinity.adapter
        return ForwardedRequest(fields, body, affinity.key)

    async def _body(self, receive: Any) -> bytes | None:
        """Return a body; None if the client has left. Of one that is too large, so much that a replica refuses it."""
        pieces, size, is_open = [], 0, True
        while is_open and size <= self._limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            is_open = message.get("more_body", False)
        return b"".join(pieces)

    async def _affinity(self, scope: Any, body: bytes) -> Affinity:
        if scope["method"] != "POST" or not body or len(body) > self._limit:
            return NONE
        if len(body) <= _SMALL_BODY:
            return affinity_of(body, self._names)
        return await asyncio.to_thread(affinity_of, body, self._names)

    async def _serve(self, request: ForwardedRequest, receive: Any, send: Any) -> None:
        """Send an answer, and end its work in the replica if the client leaves first."""
        work = asyncio.create_task(self._send_answer(request, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            leaving.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    async def _send_answer(self, request: ForwardedRequest, send: Any) -> None:
        seconds = _PROBE_SECONDS if request.scope["path"] in _PROBES else None
        try:
            async with asyncio.timeout(seconds):
                answer = await self._begun(request)
        except TimeoutError:
            raise UnavailableError("No replica answers.") from None
        async with aclosing(answer):
            if request.scope["path"] == "/metrics" and answer.status == 200:
                return await self._send_metrics(answer.head, send)
            await _pass_on(answer, request.scope, send)

    async def _begun(self, request: ForwardedRequest) -> RemoteAnswer:
        """Return an answer that has begun. A replica that fails before that is replaced by another one."""
        for num_left in reversed(range(_TRIES)):
            answer = RemoteAnswer(self._answer, request)
            try:
                await answer.begin()
            except UnavailableError as error:
                if not num_left:
                    raise
                logger.warning("Another replica is asked: %s", error)
                continue
            if answer.status != 503 or not num_left:
                return answer
            await answer.aclose()
            request = replace(request, avoid=request.avoid | {answer.replica})
            logger.warning("Another replica is asked: the replica %s is not available.", answer.replica)
        raise AssertionError

    async def _send_metrics(self, head: Message, send: Any) -> None:
        texts = await self._handle.broadcast("metrics").results_async(timeout_s=_PROBE_SECONDS)
        body = merged(dict(texts)).encode()
        kept = [(name, value) for name, value in head["headers"] if name != b"content-length"]
        await send({**head, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})


async def _pass_on(answer: RemoteAnswer, scope: Any, send: Any) -> None:
    stream = Stream(scope)
    await send(answer.head)
    try:
        async for message in answer.rest():
            stream.count(message)
            await send(message)
    except UnavailableError as error:
        logger.warning("An answer broke off: %s", error)
        await send({"type": "http.response.body", "body": stream.failure(error), "more_body": False})


async def _disconnected(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive: Any, send: Any) -> None:
    kind = ""
    while kind != "lifespan.shutdown":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
