"""`ternvl batch`: one line of answers for each line of requests, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from ternvl.cli.batch.asking import Asking
from ternvl.cli.batch.requests import URLS, RequestFile
from ternvl.cli.batch.results import ResultFile, Results, answered
from ternvl.errors import ConfigError, TernvlError
from ternvl.llm import LLM
from ternvl.server.operations import OPERATIONS
from tests.cli.calling import expected, run, user
from tests.server.fakes import scripted_llm, serving, tiny_llm

ROOT = Path(__file__).resolve().parents[3]
CHAT = "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 8}


def line(custom_id: str, url: str = CHAT, **body: Any) -> str:
    body = body or {"messages": [{"role": "user", "content": custom_id}], **GREEDY}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def write(folder: Path, *lines: str) -> Path:
    path = folder / "in.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def said(result: dict[str, Any]) -> str:
    answer = result["response"]["body"]["choices"][0]["message"]["content"]
    assert isinstance(answer, str)
    return answer


def test_answers_are_those_of_the_server(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, offline: LLM
) -> None:
    turns = [{"role": "user", "content": "hi"}]
    path = write(
        tmp_path,
        line("chat", messages=turns, model="mine", **GREEDY),
        line("plain", "/v1/completions", prompt="hi", **GREEDY),
        "",
        line("response", "/v1/responses", input="hi", temperature=0, max_output_tokens=8),
        line("message", "/v1/messages", messages=turns, **GREEDY),
        line("wrong", messages=turns, temperature=-1),
    )
    flags = ["--model", folder, "--served-model-name", "mine", "--max-model-len", "512"]
    code, out, err = run(capsys, "batch", path, tmp_path / "out.jsonl", *flags)
    assert (code, out, err) == (1, f"{tmp_path / 'out.jsonl'}: 4 of 5 lines answered, 1 failed\n", "")
    found = {result["custom_id"]: result for result in read(tmp_path / "out.jsonl")}
    assert len({result["id"] for result in found.values()}) == 5
    assert said(found["chat"]) == expected(offline, user("hi"))
    assert found["chat"]["response"]["body"]["model"] == "mine"
    assert found["plain"]["response"]["body"]["object"] == "text_completion"
    response, message = (found[name]["response"]["body"] for name in ("response", "message"))
    assert response["output"][0]["content"][0]["text"] == message["content"][0]["text"] == said(found["chat"])
    refused = found["wrong"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "temperature")
    assert refused["request_id"].startswith("req_")
    assert [result["error"] for result in found.values()] == [None] * 5


def test_the_endpoints_are_those_that_answer_with_text() -> None:
    assert [each.path for each in OPERATIONS if each.streams] == list(URLS)


BROKEN = {
    "no json": "the line is not JSON",
    "[]": "the line is an array",
    '{"custom_id": 7}': "custom_id must be a text",
    '{"method": "POST"}': "custom_id is missing",
    json.dumps({"custom_id": "get", "method": "GET", "url": CHAT, "body": {}}): "method is 'GET'",
    line("away", "/v1/embeddings", input="hi"): "url is '/v1/embeddings', but must be one of /v1/chat/completions",
    json.dumps({"custom_id": "list", "method": "POST", "url": CHAT, "body": []}): "body is an array",
    line("stream", messages=[], stream=True): "body.stream is set",
    line("b"): "custom_id 'b' is also that of line 2",
    '{"custom_id": "\ufffd"': "the line is not JSON",
}


def test_broken_lines_are_named_and_the_others_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, line("a"), line("b"), *BROKEN)
    with serving(tiny_llm()) as address:
        flags = ["--url", f"{address}/v1", "--error-file", tmp_path / "errors.jsonl"]
        code, out, err = run(capsys, "batch", path, tmp_path / "out.jsonl", *flags)
        assert run(capsys, "batch", path, tmp_path / "out.jsonl", *flags) == (code, out, err)
    assert code == 1
    assert f"2 of {2 + len(BROKEN)} lines answered, {len(BROKEN)} failed" in out
    named = err.splitlines()
    assert [text.split(" ")[0] for text in named] == [f"{path}:{3 + number}:" for number in range(len(BROKEN))]
    assert [problem in text for text, problem in zip(named, BROKEN.values(), strict=True)] == [True] * len(BROKEN)
    assert {result["custom_id"] for result in read(tmp_path / "out.jsonl")} == {"a", "b"}
    errors = read(tmp_path / "errors.jsonl")
    assert [result["custom_id"] for result in errors] == [None] * 4 + ["get", "away", "list", "stream", "b", None]
    assert [result["error"]["code"] for result in errors].count("duplicate_custom_id") == 1
    assert errors[0]["error"]["message"].startswith("Line 3: the line is not JSON")


def test_a_stopped_run_goes_on(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path, *map(line, "abcdef")), tmp_path / "out.jsonl"
    command = ["batch", path, out, "--model", folder, "--max-model-len", "512"]
    assert run(capsys, *command)[0] == 0
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(whole[0] + whole[1] + whole[2][:40])
    assert run(capsys, *command)[0] == 0
    assert sorted(result["custom_id"] for result in read(out)) == list("abcdef")
    assert out.read_bytes().startswith(whole[0] + whole[1])
    before = out.read_bytes()
    assert run(capsys, "batch", path, out, "--model", "no/such/model")[0] == 0  # nothing is left to ask
    assert out.read_bytes() == before
    write(tmp_path, *map(line, "abcdeg"))
    code, _, err = run(capsys, *command)
    assert (code, "is no answer to these requests" in err) == (1, True)
    assert out.read_bytes() == before


def test_a_killed_process_loses_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, out = write(tmp_path, *map(line, "abcd")), tmp_path / "out.jsonl"
    with serving(scripted_llm("the answer " * 20)) as address:
        asked = ["batch", str(path), str(out), "--url", address, "--concurrency", "1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen([sys.executable, "-m", "ternvl", *asked], env=environment) as process:
            while not out.is_file() or not out.stat().st_size:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        begun = out.read_bytes()
        assert run(capsys, *asked)[0] == 0
    assert out.read_bytes().startswith(begun[: begun.rfind(b"\n") + 1])
    assert sorted(result["custom_id"] for result in read(out)) == list("abcd")


def ask(folder: Path, answer: Callable[[httpx.Request], httpx.Response], path: Path) -> dict[str, bool]:
    """Run a batch against a function, two requests at a time."""
    with (
        RequestFile(path) as file,
        Results(folder / "out.jsonl", None, {each.id for each in file.lines}) as out,
    ):
        waiting = [each for each in file.lines if each.id not in out.done]
        client = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(answer))
        asyncio.run(Asking(client, file, out, 2, waits=(0, 0)).run(waiting, lambda done, total: None))
        return out.done


def test_a_server_that_vanishes(tmp_path: Path) -> None:
    path, asked = write(tmp_path, *map(line, "abcdef")), [0]

    def vanishing(request: httpx.Request) -> httpx.Response:
        asked[0] += 1
        if asked[0] > 3:
            raise httpx.ReadError("the connection broke")
        return httpx.Response(200, json={"ok": True})

    with pytest.raises(TernvlError, match="cannot be reached: the connection broke"):
        ask(tmp_path, vanishing, path)
    assert len(read(tmp_path / "out.jsonl")) == 3
    again = ask(tmp_path, lambda request: httpx.Response(200, json={"ok": True}), path)
    assert list(again.values()) == [True] * 6
    assert sorted(result["custom_id"] for result in read(tmp_path / "out.jsonl")) == list("abcdef")


def test_a_busy_server_is_asked_again_and_a_closed_one_is_not(tmp_path: Path) -> None:
    path = write(tmp_path, *map(line, "ab"))
    answers = iter([429, 503, 200, 502, 200])
    done = ask(tmp_path, lambda request: httpx.Response(next(answers), json={}), path)
    assert list(done.values()) == [True, True]
    (tmp_path / "out.jsonl").unlink()
    turns = iter([429, 200, 429, 429, 429])  # the second line is asked again only while the first one is answered
    with pytest.raises(TernvlError, match="too busy"):
        ask(tmp_path, lambda request: httpx.Response(next(turns), json={}), path)
    assert len(read(tmp_path / "out.jsonl")) == 1
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(TernvlError, match="status 401: no key"):
        ask(tmp_path, lambda request: httpx.Response(401, json={"error": {"message": "no key"}}), path)
    with pytest.raises(TernvlError, match="too busy, with status 429"):
        ask(tmp_path, lambda request: httpx.Response(429, headers={"retry-after": "tomorrow"}), path)
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    ask(tmp_path, lambda request: httpx.Response(200, text="<html>"), path)
    assert {result["error"]["code"] for result in read(tmp_path / "out.jsonl")} == {"invalid_response"}


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    digits, asked = "0.1234567890123456789", []
    path = write(tmp_path, line("a", x=1).replace('"x": 1', f'"x": {digits}'))

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.content)
        return httpx.Response(200, json={})

    ask(tmp_path, answer, path)
    assert asked == [b'{"x": %s}' % digits.encode()]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    result = answered("batch_req_1", "a", 200, "req_1", {"text": "x" * 100})
    with closing(ResultFile(tmp_path / "out.jsonl", {"batch_req_1"})) as file:
        file.add(result)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        try:
            with pytest.raises(TernvlError, match=r"out\.jsonl cannot be written: File too large"):
                file.add(result)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        file.add(result)
    assert read(tmp_path / "out.jsonl") == [result, result]


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    with closing(ResultFile(tmp_path / "out.jsonl", ())), pytest.raises(ConfigError, match="Another process"):
        ResultFile(tmp_path / "out.jsonl", ())


def test_images_are_read_where_it_is_allowed(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, image: Path
) -> None:
    part = {"type": "image_url", "image_url": {"url": image.as_uri()}}
    path = write(tmp_path, line("a", messages=[{"role": "user", "content": [part]}], **GREEDY))
    command = ["batch", path, "--model", folder, "--max-model-len", "512"]
    assert run(capsys, *command, tmp_path / "refused.jsonl")[0] == 1
    assert read(tmp_path / "refused.jsonl")[0]["response"]["status_code"] == 400
    assert run(capsys, *command, tmp_path / "out.jsonl", "--allow-local-media", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.jsonl", "out.jsonl"], "none.jsonl cannot be read"),
        (["{tmp}/in.jsonl", "{tmp}/out.jsonl", "--replicas", "0"], "--replicas is 0"),
        (["{tmp}", "{tmp}/out", "--error-file", "{tmp}/bad"], "--error-file is for one file"),
        (["{tmp}", "{tmp}/out", "--url", "http://a/v1"], "--url names a server"),
        (["/dev/null", "out.jsonl"], "it is not a regular file"),
        (["{tmp}/empty.jsonl", "{tmp}/out.jsonl"], "has no requests"),
        (["{tmp}/in.jsonl", "{tmp}/in.jsonl"], "different files"),
        (["{tmp}/in.jsonl", "/dev/full"], "/dev/full cannot be written: it is not a regular file"),
        (["{tmp}/in.jsonl", "{tmp}/none/out.jsonl"], "cannot be written: No such file or directory"),
        (["{tmp}/in.jsonl", "{tmp}/out.jsonl", "--concurrency", "0"], "--concurrency is 0"),
        (["{tmp}/in.jsonl", "{tmp}/out.jsonl", "--url", "nowhere"], "--url is 'nowhere'"),
        (
            ["{tmp}/in.jsonl", "{tmp}/out.jsonl", "--url", "http://a/v1", "--max-images", "2"],
            "--max-images is for a model",
        ),
        (["{tmp}/in.jsonl", "{tmp}/out.jsonl", "--url", "http://a/v1", "--model", "m"], "--model is for a model"),
        (["{tmp}/in.jsonl", "{tmp}/out.jsonl", "--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_what_goes_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    write(tmp_path, line("a"))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    code, out, err = run(capsys, "batch", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says.format(tmp=tmp_path) in err
