"""A model that knows the answers, for suites that ask more than the embedded model can understand.

Only the drawing of tokens is replaced. Prompts, grammars, parsers and protocols are the server's own, and an answer
that the request's grammar refuses is a failure of the server, not of the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ternvl.config import EngineConfig
from ternvl.engine.request import Request
from ternvl.engine.stats import EngineStats
from ternvl.errors import TernvlError
from ternvl.llm import LLM
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import FinishReason, TokenOutput

Answers = dict[str, Sequence[str]]
"""What is asked, and what may be answered. The first answer that the request's grammar allows is given."""


def call(name: str, /, **arguments: Any) -> str:
    """The text of a call."""
    text = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'


@dataclass
class KnowingEngine:
    """Answers the question that stands last in the prompt."""

    answers: Answers
    tokenizer: Tokenizer
    config: EngineConfig = field(default_factory=lambda: EngineConfig(max_model_len=16_384))
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._running: dict[str, Iterator[TokenOutput]] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def add(self, request: Request) -> None:
        prompt = self.tokenizer.decode(request.prompt.token_ids)
        self.prompts.append(prompt)
        asked = max(self.answers, key=prompt.rfind)
        known = self.answers[asked] if asked in prompt else ["I do not know."]
        token_ids = next((each for text in known if (each := self._allowed(request, text)) is not None), None)
        if token_ids is None:
            raise TernvlError(f"The grammar refuses every answer to {prompt!r}")
        self._running[request.id] = self._outputs(request, token_ids)

    def _allowed(self, request: Request, text: str) -> list[int] | None:
        """The tokens of an answer, or None if the request's grammar refuses it."""
        token_ids = self.tokenizer.encode_text(text)
        if request.grammar is None:
            return token_ids
        matcher = request.grammar.matcher()
        if matcher.num_allowed(token_ids) < len(token_ids):
            return None
        for token_id in token_ids:
            matcher.accept(token_id)
        return token_ids if matcher.state.is_accepting() else None

    def _outputs(self, request: Request, token_ids: Sequence[int]) -> Iterator[TokenOutput]:
        limit = request.params.max_tokens or len(token_ids)
        for token_id in token_ids[:limit]:
            yield TokenOutput(request.id, (token_id,))
        yield TokenOutput(request.id, (), FinishReason.STOP if len(token_ids) <= limit else FinishReason.LENGTH)

    def step(self) -> list[TokenOutput]:
        time.sleep(0.001)  # a model that takes no time at all would leave the event loop none
        outputs = [next(running) for running in self._running.values()]
        for output in outputs:
            if output.finish_reason:
                del self._running[output.request_id]
        return outputs

    def abort(self, request_id: str) -> None:
        self._running.pop(request_id, None)

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._running))


def knowing_llm(answers: Answers) -> LLM:
    """The embedded model's prompts and grammars, and answers that are known."""
    llm = LLM(max_model_len=16_384)
    engine = KnowingEngine(answers, llm.tokenizer)
    llm.engine = llm.service.engine = engine  # type: ignore[assignment]
    return llm
