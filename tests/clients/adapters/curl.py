"""`curl`, and what its user reads."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

from tests.clients.adapters.asking import GREEDY, LONG, ROOM, TOOL, Call, Capital, turn

_REQUIRED: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": ROOM,
}
_FORM = {
    "type": "json_schema",
    "json_schema": {"name": "capital", "strict": True, "schema": Capital.model_json_schema()},
}


class Curl:
    """`curl`."""

    def __init__(self, url: str) -> None:
        subprocess.run(["curl", "--version"], check=True, capture_output=True)
        self.url = f"{url}/v1/chat/completions"

    def _command(self, body: dict[str, Any]) -> list[str]:
        return ["curl", "-sN", "-m", "60", self.url, "-H", "Content-Type: application/json", "-d", json.dumps(body)]

    def _ask(self, body: dict[str, Any]) -> str:
        return subprocess.run(self._command(body), check=True, capture_output=True, encoding="utf-8").stdout

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = json.loads(self._ask(body))["choices"][0]
        return choice

    def _deltas(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        events = self._ask({"stream": True, **body}).split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        for event in events[:-2]:
            yield json.loads(event.removeprefix("data: "))["choices"][0]["delta"]

    def text(self, text: str, image: str | None = None) -> str:
        return str(self._choice({"messages": turn(text, image), **GREEDY})["message"]["content"])

    def video(self, text: str, url: str) -> str:
        return str(self._choice({"messages": turn(text, video=url), **GREEDY})["message"]["content"])

    def stream(self, text: str) -> Iterator[str]:
        for delta in self._deltas({"messages": turn(text), **GREEDY}):
            yield delta.get("content", "")

    def tools(self, text: str) -> list[Call]:
        choice = self._choice({"messages": turn(text), **_REQUIRED})
        assert choice["finish_reason"] == "tool_calls"
        functions = [call["function"] for call in choice["message"]["tool_calls"]]
        return [(function["name"], json.loads(function["arguments"])) for function in functions]

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        deltas = list(self._deltas({"messages": turn(text), **_REQUIRED}))
        functions = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
        arguments = "".join(function["arguments"] for function in functions)
        return [(functions[0]["name"], json.loads(arguments))], len(functions) - 1

    def schema(self, text: str) -> dict[str, Any]:
        choice = self._choice({"messages": turn(text), "response_format": _FORM, "max_tokens": ROOM})
        answer: dict[str, Any] = json.loads(choice["message"]["content"])
        return answer

    def error(self) -> int:
        error = json.loads(self._ask({"messages": turn("hi"), "model": "none"}))["error"]
        return 404 if error["code"] == "model_not_found" else 0

    def cancel(self) -> None:
        body = {"messages": turn("hi"), "stream": True, "ignore_eos": True, **LONG}
        with subprocess.Popen(self._command(body), stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            process.terminate()
