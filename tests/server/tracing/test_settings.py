"""What is said of settings of traces before the model is loaded; none of it needs OpenTelemetry."""

from __future__ import annotations

import sys

import httpx
import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.validate import check_config


def refusal(endpoint: str) -> str:
    with pytest.raises(ConfigError) as raised:
        check_config(ServerConfig(otlp_endpoint=endpoint))
    return str(raised.value)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    expected = "otlp_endpoint needs OpenTelemetry, which is not installed here (pip install 'ternvl[otel]')."
    assert refusal("http://127.0.0.1:4318") == expected


@pytest.mark.parametrize(
    "given",
    ["", "127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://", "http://[::1", "http://a:99999", "file:///tmp/a"],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    assert refusal(given).startswith(f"otlp_endpoint is {given!r}, but must be the http or https address")


@pytest.mark.parametrize(
    "given", ["http://me:hush@127.0.0.1", "http://127.0.0.1/?token=hush", "http://127.0.0.1/#hush"]
)
def test_a_secret_in_the_address_is_refused_and_not_repeated(given: str) -> None:
    assert "OTEL_EXPORTER_OTLP_HEADERS" in refusal(given)
    assert "hush" not in refusal(given)


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert "protocol is 'grpc', but spans are sent with http/protobuf" in refusal("http://127.0.0.1:4317")


def test_without_the_option_an_answer_says_nothing_of_traces(http: httpx.Client) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert "traceresponse" not in http.get("/version", headers={"traceparent": parent}).headers
