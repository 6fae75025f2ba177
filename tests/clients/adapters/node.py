"""The clients for Node, each a module in `tests/clients/node` that is asked a verb."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any, ClassVar

from tests.clients.adapters.asking import MODEL, ROOM, TOOL, Call, Capital
from tests.npm import FOLDER, install


class NodeClient:
    """A module that is run with a verb and gets what it needs as JSON."""

    module: ClassVar[str]

    def __init__(self, url: str) -> None:
        install(FOLDER)
        self.url = f"{url}/v1"

    def _run(self, verb: str, **asked: Any) -> Any:
        known = {"url": self.url, "model": MODEL, "room": ROOM}
        result = subprocess.run(
            ["node", self.module, verb],
            cwd=FOLDER,
            input=json.dumps(known | asked),
            capture_output=True,
            encoding="utf-8",
            timeout=100,
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        return json.loads(result.stdout)

    def text(self, text: str, image: str | None = None) -> str:
        return str(self._run("text", text=text, image=image))

    def stream(self, text: str) -> Iterator[str]:
        yield from self._run("stream", text=text)

    def tools(self, text: str) -> list[Call]:
        return [(name, arguments) for name, arguments in self._run("tools", text=text, tool=TOOL)]

    def streamed_tools(self, text: str) -> tuple[list[Call], int]:
        calls, num_pieces = self._run("streamedTools", text=text, tool=TOOL)
        return [(name, arguments) for name, arguments in calls], num_pieces

    def schema(self, text: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._run("schema", text=text, schema=Capital.model_json_schema())
        return answer

    def error(self) -> int:
        return int(self._run("error"))

    def cancel(self) -> None:
        assert self._run("cancel")


class OpenAINode(NodeClient):
    """`openai` for Node."""

    module = "openai.js"


class VercelAI(NodeClient):
    """Vercel's AI SDK, `ai` with `@ai-sdk/openai-compatible`."""

    module = "vercel.js"
