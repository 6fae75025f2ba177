"""ASGI middleware that makes the spans of a request: one of the server, and one for each of its stages.

The spans of the stages are made once the request has ended, from the times that were noted meanwhile. Imports
OpenTelemetry, so it is imported only if traces are wanted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.prompt.timing import timeline
from ternvl.prompt.timing.timeline import Timeline
from ternvl.server.guard.auth import CALLER
from ternvl.server.log import lines, request_log
from ternvl.server.metrics.middleware import ENDPOINT
from ternvl.server.tracing.attributes import of_record
from ternvl.server.tracing.provider import Tracing

HEADER = "traceresponse"
"""Tells the client the span of its request, in the form of `traceparent` (W3C Trace Context, level 2)."""


@dataclass(frozen=True)
class _Start:
    """When a request came, by the clock on the wall and by the one that stages are timed with."""

    nanoseconds: int
    seconds: float

    def wall(self, seconds: float) -> int:
        """Return a time of `perf_counter` in nanoseconds since 1970."""
        return self.nanoseconds + int((seconds - self.seconds) * 1e9)


class Traced:
    """ASGI middleware that traces the requests to the API's endpoints, except those of probes."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracer = tracing.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and end its spans after it."""
        endpoint = scope.get(ENDPOINT) if scope["type"] == "http" else None
        if endpoint is None or endpoint in request_log.QUIET:
            return await self._app(scope, receive, send)
        start, noted, status = _Start(time.time_ns(), time.perf_counter()), Timeline(), 499
        span = self._begin(scope, endpoint, start)
        record = request_log.current.get() or request_log.Record()
        context = span.get_span_context()
        record.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else ""

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if context.is_valid:
                    MutableHeaders(scope=message)[HEADER] = _in_words(context)
            await send(message)

        token = timeline.current.set(noted if span.is_recording() else None)
        try:
            await self._app(scope, receive, watched)
        finally:
            timeline.current.reset(token)
            if span.is_recording():
                self._add_stages(span, noted, start)
                _describe(span, scope, status, record, noted)
            span.end()

    def _begin(self, scope: Scope, endpoint: str, start: _Start) -> Span:
        attributes = {
            "http.request.method": scope["method"],
            "http.route": endpoint,
            "url.scheme": scope["scheme"],
            "ternvl.request.id": lines.request_id.get(),
        }
        return self._tracer.start_span(
            f"{scope['method']} {endpoint}",
            context=propagate.extract(_carrier(Headers(scope=scope))),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=start.nanoseconds,
        )

    def _add_stages(self, parent: Span, noted: Timeline, start: _Start) -> None:
        context = trace.set_span_in_context(parent)
        for stage in noted.stages:
            span = self._tracer.start_span(
                stage.name,
                context=context,
                attributes={f"ternvl.{name}": value for name, value in stage.facts.items()},
                start_time=start.wall(stage.began),
            )
            if stage.error:
                span.set_attribute("error.type", stage.error)
                span.set_status(StatusCode.ERROR)
            span.end(start.wall(stage.ended))


def _carrier(headers: Headers) -> dict[str, list[str]]:
    """Return the headers that name the caller's span. Two `traceparent` are as good as none, as the standard says."""
    carrier = {name: headers.getlist(name) for name in propagate.get_global_textmap().fields if name in headers}
    return carrier if len(carrier.get("traceparent", [])) <= 1 else {}


def _in_words(context: SpanContext) -> str:
    """Return a span in the form of `traceparent`."""
    ids = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return f"00-{'-'.join(ids)}-{context.trace_flags:02x}"


def _describe(span: Span, scope: Scope, status: int, record: request_log.Record, noted: Timeline) -> None:
    attributes: dict[str, Any] = {"http.response.status_code": status, **of_record(record, scope[ENDPOINT])}
    attributes |= noted.facts | ({"ternvl.stages.dropped": noted.num_dropped} if noted.num_dropped else {})
    attributes |= {"ternvl.key.name": scope[CALLER]} if CALLER in scope else {}
    broke = "error" in record.finish_reasons  # also after a stream has begun with status 200
    if status >= 500 or broke:
        attributes["error.type"] = str(status) if status >= 400 else "stream"
        span.set_status(StatusCode.ERROR)
    span.set_attributes(attributes)
