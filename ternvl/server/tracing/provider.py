"""The way of spans to a collector: OTLP over HTTP, set by `--otlp-endpoint` and OpenTelemetry's own variables.

It needs the extra `otel`. Spans are sent by a thread in batches; a collector that is slow or away costs spans, and
never a request.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ternvl import __version__
from ternvl.config import ServerConfig
from ternvl.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

_PATH = "/v1/traces"
"""The path of traces by OTLP's specification."""

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_PRIVATE = ("process.command", "process.command_args", "process.command_line")
"""Attributes that OpenTelemetry's detector of processes may add. The arguments of a process may have a key."""

_GRACE = 2.0
"""Seconds that the last spans have at the end of the server."""


@dataclass(frozen=True)
class Tracing:
    """The tracer of one server, and what sends its spans."""

    tracer: Tracer
    provider: TracerProvider
    exporter: SpanExporter

    @classmethod
    def of(cls, config: ServerConfig) -> Tracing | None:
        """Return the tracing that is configured; None without `otlp_endpoint`. Raises ConfigError as `exporter_of`."""
        exporter = exporter_of(config)
        if exporter is None:
            return None
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider.get_tracer("ternvl", __version__), provider, exporter)

    def close(self) -> None:
        """Send the spans that are left, for two seconds at most."""
        closing = threading.Thread(target=self.provider.shutdown, name="tracing-end", daemon=True)
        closing.start()
        closing.join(_GRACE)
        if closing.is_alive():
            self.exporter.shutdown()  # gives up what waits to be tried again


def exporter_of(config: ServerConfig) -> SpanExporter | None:
    """Return what sends spans to `otlp_endpoint`; None without it.

    Raises ConfigError if the extra `otel` is not installed, for an address that is none, and for variables of
    OpenTelemetry that are not understood.
    """
    if config.otlp_endpoint is None:
        return None
    address = _address(config.otlp_endpoint)
    protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        raise ConfigError(f"OpenTelemetry's protocol is {protocol!r}, but spans are sent with http/protobuf alone.")
    try:
        from opentelemetry import propagate, trace  # noqa: F401
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter: SpanExporter = OTLPSpanExporter(endpoint=address)
    except ImportError:
        raise ConfigError(
            "otlp_endpoint needs OpenTelemetry, which is not installed here (pip install 'ternvl[otel]')."
        ) from None
    except ValueError as error:
        message = f"A variable of OpenTelemetry (OTEL_...) cannot be used: {str(error).rstrip('.')}."
        raise ConfigError(message) from None
    return exporter


def _address(given: str) -> str:
    """Return the address of a collector for traces. Raises ConfigError if it is none, or may have a secret in it."""
    rule = "must be the http or https address of a collector, such as http://127.0.0.1:4318"
    try:
        parts = urlsplit(given)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(f"otlp_endpoint is {given!r}, but {rule}.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "otlp_endpoint has a user, a password, a query or a fragment, but must be a plain address; the variable "
            "OTEL_EXPORTER_OTLP_HEADERS has the secrets for a collector."
        )
    return given if parts.path.strip("/") else given.rstrip("/") + _PATH


def _resource() -> Resource:
    """Return what spans say of the server: OpenTelemetry's variables, by default the service `ternvl`."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create({"service.version": __version__})
    attributes = {name: value for name, value in found.attributes.items() if name not in _PRIVATE}
    if str(attributes["service.name"]).startswith("unknown_service"):
        attributes["service.name"] = "ternvl"
    return Resource(attributes, found.schema_url)
