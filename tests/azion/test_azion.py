"""`Azion.AI.run` in Python: against a server and in process, and what goes wrong."""

from __future__ import annotations

import asyncio
import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ternvl.azion import Azion, AzionError, AzionStream
from ternvl.errors import CheckpointError, ConfigError, TernvlError
from ternvl.llm import LLM
from tests.prompt.videos import animation, picture, uri
from tests.server.fakes import scripted_llm, serving

MODEL = "opengvlab-internvl3-1b-instruct"
REQUEST = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
STREAM = {**REQUEST, "stream": True}


def run(request: Any = REQUEST, model: str = MODEL) -> Any:
    return asyncio.run(Azion.AI.run(model, request))


def refused(request: Any = REQUEST, model: str = MODEL) -> AzionError:
    with pytest.raises(AzionError) as caught:
        run(request, model)
    error = caught.value
    assert isinstance(error, TernvlError)
    assert list(error.body) == ["error"]
    assert list(error.body["error"]) == ["message", "type", "param", "code"]
    assert str(error) == error.body["error"]["message"]
    return error


async def collect(stream: AzionStream) -> list[dict[str, Any]]:
    return [chunk async for chunk in stream]


@pytest.mark.usefixtures("mode")
class TestEitherWay:
    def test_an_answer(self) -> None:
        answer = run()
        assert type(answer) is dict
        assert answer["object"] == "chat.completion"
        assert answer["model"] == "ternvl-nano"
        assert answer["choices"][0]["message"]["content"] == "Paris."
        assert answer["usage"]["total_tokens"] == 29

    def test_a_video(self) -> None:
        part = {"type": "video_url", "video_url": {"url": uri(animation([picture(1), picture(2)])), "num_frames": 2}}
        answer = run({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]})
        assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 2 * 16

    def test_one_event_loop_after_another(self) -> None:
        async def streamed() -> list[dict[str, Any]]:
            return await collect(await Azion.AI.run(MODEL, {**STREAM, "stream_options": {"include_usage": True}}))

        for _ in range(3):
            chunks = asyncio.run(streamed())
            text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
            assert text == "Paris."
            assert chunks[-1]["usage"]["total_tokens"] == 29

    def test_a_stream_is_an_iterator(self) -> None:
        async def steps() -> None:
            stream = await Azion.AI.run(MODEL, STREAM)
            assert (await anext(stream))["choices"][0]["delta"]["role"] == "assistant"
            assert (await collect(stream))[-1]["choices"][0]["finish_reason"] == "stop"
            assert await anext(stream, "ended") == "ended"
            assert [piece async for piece in stream.bytes()] == []

        asyncio.run(steps())

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_bad_value(self, stream: bool) -> None:
        error = refused({**REQUEST, "temperature": 3, "stream": stream})
        assert error.status == 400
        assert error.body["error"]["param"] == "temperature"
        assert error.body["error"]["type"] == "invalid_request_error"

    def test_an_unknown_model(self) -> None:
        error = refused(model="gpt-9")
        assert error.status == 404
        assert error.body["error"]["code"] == "model_not_found"
        assert run(model="ternvl-nano")["choices"][0]["message"]["content"] == "Paris."

    @pytest.mark.parametrize("request_", [[], "Hi", {"messages": {1, 2}}, {**REQUEST, "temperature": float("nan")}])
    def test_what_is_no_json(self, request_: Any) -> None:
        assert refused(request_).status == 400


def test_a_failure_within_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = scripted_llm("The answer is long.", fail_after=3)
    received: list[dict[str, Any]] = []

    async def read() -> None:
        async for chunk in await Azion.AI.run(MODEL, STREAM):
            received.append(chunk)

    with serving(llm) as url:
        monkeypatch.setenv("TERNVL_BASE_URL", f"{url}/v1")
        with pytest.raises(AzionError) as caught:
            asyncio.run(read())
    assert received
    assert caught.value.status == 500
    assert caught.value.body["error"]["type"] == "server_error"


# In process


def test_the_model_is_loaded_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(model: str) -> LLM:
        loaded.append(model)
        return scripted_llm("Hello")

    monkeypatch.delenv("TERNVL_BASE_URL", raising=False)
    monkeypatch.setenv("TERNVL_MODEL", "some/model")
    monkeypatch.setattr("ternvl.llm.LLM", load)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(run())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["Hello"] * 6
    assert loaded == ["some/model"]


def test_a_model_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TERNVL_BASE_URL", raising=False)
    monkeypatch.setenv("TERNVL_MODEL", str(tmp_path))
    with pytest.raises(CheckpointError):
        run()


LAST_WORDS = """
import asyncio, contextlib, threading
from ternvl.azion import Azion, AzionError

request = {"stream": True, "max_tokens": 2000, "ignore_eos": True, "messages": [{"role": "user", "content": "Hi"}]}
kept = []
under_way = threading.Event()

async def read(num_chunks):
    stream = await Azion.AI.run("opengvlab-internvl3-1b-instruct", request)
    kept.append(stream)
    async for chunk in stream:
        under_way.set()
        num_chunks -= 1
        if not num_chunks:
            return chunk["object"]

def read_on():
    with contextlib.suppress(AzionError):
        asyncio.run(read(10_000))

print(asyncio.run(read(1)))
under_way.clear()
threading.Thread(target=read_on, daemon=True).start()
under_way.wait()
"""


def test_the_interpreter_ends_silently_with_an_answer_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TERNVL_BASE_URL", "TERNVL_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", LAST_WORDS], cwd=root, capture_output=True, text=True, timeout=100
    )
    # In its debug mode asyncio names what took long, which a busy machine decides.
    assert [line for line in result.stderr.splitlines() if not line.startswith("Executing ")] == []
    assert result.stdout == "chat.completion.chunk\n"
    assert result.returncode == 0


# Against a server


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(scripted_llm("Hello"), api_key="sésame") as url:
        monkeypatch.setenv("TERNVL_BASE_URL", f"{url}/v1/")
        monkeypatch.setenv("TERNVL_API_KEY", "wrong")
        assert refused().status == 401
        monkeypatch.setenv("TERNVL_API_KEY", "sésame")
        assert run()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("request_", [REQUEST, STREAM])
def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any]) -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TERNVL_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        error = refused(request_)
    assert error.status == 502
    assert error.body["error"]["code"] == "unreachable"


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://example.com", "http://", "http://a:b/v1"])
def test_a_base_url_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("TERNVL_BASE_URL", url)
    with pytest.raises(ConfigError, match="TERNVL_BASE_URL"):
        run()


EVENT = b'data: {"choices": []}\n\n'


@pytest.mark.parametrize(
    ("status", "content_type", "body", "expected", "code"),
    [
        (503, "text/html", b"<html>busy</html>", 503, None),
        (404, "application/json", b'{"detail": "Not Found"}', 404, None),
        (200, "text/html", b"<html>a login page</html>", 502, None),
        (302, "application/json", b"{}", 502, None),
        (200, "text/event-stream", EVENT, 502, "broken_stream"),
        (200, "text/event-stream", EVENT + b"data: {\n\n", 502, "broken_stream"),
    ],
)
def test_a_server_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, status: int, content_type: str, body: bytes, expected: int, code: str | None
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    async def ask() -> None:
        answer = await Azion.AI.run(MODEL, REQUEST)
        await collect(answer)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("TERNVL_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(AzionError) as caught:
            asyncio.run(ask())
        thread.join()
    assert caught.value.status == expected
    assert caught.value.body["error"]["code"] == code
