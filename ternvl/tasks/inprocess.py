"""An `LLM` of this process as the backend of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ternvl.params import Grammar, SamplingParams
from ternvl.tasks.pictures import Picture
from ternvl.tasks.requests import Reply, TaskRequest, messages, together
from ternvl.types import FinishReason

if TYPE_CHECKING:
    from ternvl.answer.completion import RequestOutput
    from ternvl.llm import LLM


class EngineBackend:
    """Asks an engine. The requests of several threads and event loops are batched together."""

    def __init__(self, llm: LLM, *, adapter: str | None = None) -> None:
        """`adapter` is the LoRA adapter that answers, by the name that it was loaded under."""
        self._llm, self._adapter = llm, adapter

    def answer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        """Answer requests in one batch. Raises what `LLM.chat` raises."""
        conversations = [_conversation(request) for request in requests]
        params = [self._params(request) for request in requests]
        return [_reply(output) for output in self._llm.chat(conversations, params, adapter=self._adapter)]

    async def aanswer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        """`answer` for an event loop, which is never blocked."""
        return await together(self._ask(request) for request in requests)

    def close(self) -> None:
        """Do nothing: the engine belongs to its `LLM`."""

    async def aclose(self) -> None:
        """Do nothing: the engine belongs to its `LLM`."""

    async def _ask(self, request: TaskRequest) -> Reply:
        stream = await self._llm.astream(_conversation(request), self._params(request), adapter=self._adapter)
        async with stream:
            async for _ in stream:
                pass
        return _reply(stream.output)

    def _params(self, request: TaskRequest) -> SamplingParams:
        form = None if request.schema is None else Grammar.of("json_schema", dict(request.schema), param="schema")
        defaults = self._llm.default_params()
        return replace(defaults, temperature=0, max_tokens=request.max_tokens, grammar=form)


def _conversation(request: TaskRequest) -> list[dict[str, Any]]:
    tiles = {} if request.max_tiles is None else {"max_dynamic_patch": request.max_tiles}

    def show(picture: Picture) -> dict[str, Any]:
        return {"type": "image", "image": picture.image, **tiles}

    return messages(request, show, "<image>")


def _reply(output: RequestOutput) -> Reply:
    return Reply(output.text, output.finish_reason is FinishReason.LENGTH)
