"""The spans of requests to real servers, as an exporter in memory and a collector on a socket get them."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import httpx
import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.limits import ImageLimits
from ternvl.server.guard.validate import check_config
from ternvl.server.log import lines as logs
from ternvl.server.tracing import provider
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import scripted_llm, serving, tiny_llm
from tests.server.images import data_uri, png
from tests.server.tracing.collector import collector

pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="needs the extra otel")

import opentelemetry
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

ADDRESS = "http://127.0.0.1:9"  # where nobody listens; the exporter in memory never connects
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "a prompt of a patient"
HI: dict[str, Any] = {**BRIEF, "max_tokens": 3, "ignore_eos": True, "messages": [{"role": "user", "content": SECRET}]}


def seen(*urls: str) -> dict[str, Any]:
    """A request with images."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {**HI, "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": SECRET}]}]}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """An exporter that every traced server has."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(provider, "exporter_of", lambda config: exporter)
    return exporter


@contextmanager
def traced(llm: Any = None, **options: Any) -> Iterator[httpx.Client]:
    """A client of a traced server; its spans are sent by the end of the context."""
    with (
        serving(llm or tiny_llm(), otlp_endpoint=ADDRESS, **options) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield http


def roots(memory: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in memory.get_finished_spans() if span.kind is SpanKind.SERVER]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_has_a_span_and_its_stages_have_theirs(memory: InMemorySpanExporter) -> None:
    with traced() as http:
        answer = http.post(CHAT, json={**seen(data_uri(png())), "temperature": 0.5, "n": 2, "seed": 7}).json()
        http.get("/health")
        http.get("/no/such/path")
    (root,) = roots(memory)
    usage, said = answer["usage"], attributes(root)
    assert root.name == f"POST {CHAT}"
    assert root.parent is None
    expected = {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ternvl",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "ternvl.images": 1,
        "ternvl.tiles": 7,  # 2 x 3 and the thumbnail
    }
    assert expected.items() <= said.items()
    children = {span.name: span for span in memory.get_finished_spans() if span is not root}
    assert children.keys() == {"fetch", "decode image", "queue", "vision", "prefill", "decode"}
    assert attributes(children["fetch"]) == {"ternvl.kind": "image", "ternvl.bytes": len(png())}
    for span in children.values():
        assert span.context.trace_id == root.context.trace_id
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time  # type: ignore[operator]
    in_order = [children[name] for name in ("fetch", "decode image", "queue", "prefill", "decode")]
    for one, next_one in pairwise(in_order):
        assert one.end_time <= next_one.start_time  # type: ignore[operator]
    vision, prefill = children["vision"], children["prefill"]
    assert prefill.start_time <= vision.start_time <= vision.end_time <= prefill.end_time  # type: ignore[operator]


def test_a_span_continues_the_trace_of_its_caller(memory: InMemorySpanExporter) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value"}
    images = [data_uri(png(each, (28, 28))) for each in ("red", "green", "blue")]
    with traced() as http:
        told = http.post(CHAT, json=seen(*images), headers=headers).headers["traceresponse"]
    names = [span.name for span in memory.get_finished_spans()]
    assert names.count("fetch") == names.count("decode image") == 3, "on the threads that load images, too"
    (root,) = roots(memory)
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert root.context.trace_state.get("vendor") == "value"
    assert told == f"00-{TRACE}-{root.context.span_id:016x}-01"


def test_a_context_that_is_none_begins_a_new_trace(memory: InMemorySpanExporter) -> None:
    twice = [f"00-{TRACE}-{PARENT}-01"] * 2
    with traced() as http:
        for given in (
            twice,
            [f"00-{'0' * 32}-{PARENT}-01"],
            [f"ff-{TRACE}-{PARENT}-01"],
            ["nonsense" * 500],
            ["\xff\xfe"],
        ):
            headers = [(b"traceparent", each.encode("latin-1")) for each in given]
            assert http.get("/version", headers=headers).status_code == 200
    assert len(roots(memory)) == 5
    for root in roots(memory):
        assert root.parent is None
        assert f"{root.context.trace_id:032x}" != TRACE


def test_a_caller_who_samples_nothing_gets_no_spans(memory: InMemorySpanExporter) -> None:
    with traced() as http:
        answer = http.post(CHAT, json=HI, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert answer.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert answer.headers["traceresponse"].endswith("-00")
    assert memory.get_finished_spans() == ()


def test_errors_are_told_by_their_status(memory: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(scripted_llm("one two three", fail_after=1), api_key="sk-secret") as http:
        http.post(CHAT, json=HI)
        http.headers["Authorization"] = "Bearer sk-secret"
        http.post(CHAT, json={**HI, "n": 0})
        http.post(CHAT, json=seen("data:image/png;base64,AAAA"))
        assert '"error"' in http.post(CHAT, json={**HI, "max_tokens": 9, "stream": True}).text
    unknown, refused, damaged, broken = sorted(roots(memory), key=lambda span: span.start_time or 0)
    statuses = [attributes(span)["http.response.status_code"] for span in (unknown, refused, damaged, broken)]
    assert statuses == [401, 400, 400, 200]
    assert "ternvl.key.name" not in attributes(unknown)
    assert attributes(refused)["ternvl.key.name"] == "api-key"
    assert all(not name.startswith("gen_ai") for name in attributes(refused))
    assert all(span.status.status_code is StatusCode.UNSET for span in (unknown, refused, damaged))
    assert broken.status.status_code is StatusCode.ERROR
    assert attributes(broken)["error.type"] == "stream"
    stages = {span.name: span for span in memory.get_finished_spans() if span.parent}
    assert stages["decode image"].status.status_code is StatusCode.ERROR
    assert attributes(stages["decode image"])["error.type"] == "ImageError"
    assert "generate" in stages


def test_the_log_names_the_trace(memory: InMemorySpanExporter) -> None:
    log, root = io.StringIO(), logging.getLogger("ternvl.request")
    handler = logs.handler("json", log)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with traced() as http:
            http.post(CHAT, json=HI)
    finally:
        root.removeHandler(handler)
        root.setLevel(logging.NOTSET)
    assert json.loads(log.getvalue())["trace_id"] == f"{roots(memory)[0].context.trace_id:032x}"


def test_a_collector_gets_the_spans_and_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=one")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=ward")
    monkeypatch.setenv("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "process")
    monkeypatch.setattr("sys.argv", ["ternvl", "serve", "--api-key", "sk-secret"])
    limits = ImageLimits(allow_private_addresses=True)
    with collector() as sink, images() as (origin, asked):
        with (
            serving(tiny_llm(limits=limits), otlp_endpoint=sink.address, api_key="sk-secret") as url,
            httpx.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer sk-secret"}) as http,
        ):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value", "cookie": "id=cookie-7"}
            body = {**seen(f"{origin}/private-path.png?signature=s1gned"), "stop": ["stop-word"], "user": "user-42"}
            answer = http.post(f"{CHAT}?query-7=1", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
        got = sink.got
    assert {path for path, _, _ in got} == {"/v1/traces"}
    assert all(headers["x-tenant"] == "one" for _, headers, _ in got)
    messages = [ExportTraceServiceRequest.FromString(body) for _, _, body in got]
    groups = [group for each in messages for group in each.resource_spans]
    spans = [span for group in groups for scope in group.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert "decode" in {span.name for span in spans}
    resource = {each.key: each.value.string_value for each in groups[0].resource.attributes}
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("ternvl", "ward")
    sent = "".join(map(str, messages))
    host = origin.rpartition("/")[2]
    words = ("patient", "secret", "private-path", "s1gned", "stop-word", "user-42", "cookie-7", "query-7", "127.0.0.1")
    for private in (SECRET, host, *words):
        assert private not in sent, private
    ((_, fetched),) = asked
    assert not {"traceparent", "tracestate", "baggage"} & {name.lower() for name in fetched}


@contextmanager
def images() -> Iterator[tuple[str, Sequence[tuple[str, Any]]]]:
    """The address of a server of images, and the path and headers of each request to it."""
    asked: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, dict(self.headers)))
            self.send_response(200)
            self.send_header("Content-Length", str(len(png())))
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_that_is_away_or_never_answers_touches_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setattr(provider, "_GRACE", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for endpoint in (ADDRESS, f"http://127.0.0.1:{silent.getsockname()[1]}/own/path"):
            with serving(tiny_llm(), otlp_endpoint=endpoint) as url:
                assert all(httpx.get(f"{url}/version", timeout=60).status_code == 200 for _ in range(3))


def test_opentelemetrys_variables_choose(memory: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chosen")
    with traced() as http:
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]", http.post(CHAT, json=HI).headers["traceresponse"])
    assert memory.get_finished_spans() == ()
    assert provider._resource().attributes["service.name"] == "chosen"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with traced() as http:
        assert "traceresponse" not in http.post(CHAT, json=HI).headers


def test_a_variable_that_is_not_understood_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "pigeon")
    monkeypatch.delitem(sys.modules, "opentelemetry.propagate")  # which reads the variable when it is imported
    monkeypatch.delattr(opentelemetry, "propagate")
    with pytest.raises(ConfigError, match=r"A variable of OpenTelemetry .* cannot be used: .*pigeon"):
        check_config(ServerConfig(otlp_endpoint=ADDRESS))
