"""Deltas to an answer: what `LLM` and the command line return is a fold over the deltas that a stream hands out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from ternvl.answer.ask import PreparedAsk
from ternvl.answer.checks import BrokenRule, append_piece, in_words
from ternvl.answer.delta import Delta
from ternvl.prompt.messages import ToolCall
from ternvl.types import FinishReason, Prompt, PromptLogprobs, TokenLogprobs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer."""

    index: int
    """Among the `n` answers of its prompt."""
    text: str
    token_ids: tuple[int, ...]
    """Without the token that stopped the answer. If a stop string ended it, the tokens that contain it are here."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None
    """Beside `token_ids`; None if they were not asked for."""
    tool_calls: tuple[ToolCall, ...] = ()
    """`text` does not contain them."""
    reasoning: str = ""
    """What the model wrote between `<think>` and `</think>` before its answer; `text` does not contain it."""
    broken_rules: tuple[BrokenRule, ...] = ()
    """Rules of tools' schemas that decoding does not enforce and that calls of the answer break."""
    unchecked_rules: tuple[str, ...] = ()
    """Paths of such rules that could not be checked."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its answers. The shortcuts are of the first answer."""

    prompt: Prompt
    outputs: list[Completion]
    prompt_logprobs: PromptLogprobs | None = None
    """Beside `prompt.token_ids`; None if they were not asked for."""

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        return self.outputs[0].logprobs

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.outputs[0].tool_calls

    @property
    def reasoning(self) -> str:
        return self.outputs[0].reasoning


@dataclass(slots=True)
class _Pieces:
    """One choice as far as it has come."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    broken_rules: tuple[BrokenRule, ...] = ()
    unchecked_rules: tuple[str, ...] = ()

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.token_ids += delta.token_ids
        self.logprobs += delta.token_logprobs
        self.finish_reason = delta.finish_reason
        self.broken_rules, self.unchecked_rules = delta.broken_rules, delta.unchecked_rules
        for piece in delta.tool_calls:
            append_piece(self.calls, piece)

    def completion(self, index: int, *, with_logprobs: bool) -> Completion:
        assert self.finish_reason is not None, "the choice has not ended"
        return Completion(
            index,
            "".join(self.text),
            tuple(self.token_ids),
            self.finish_reason,
            tuple(self.logprobs) if with_logprobs else None,
            tuple(self.calls),
            "".join(self.reasoning),
            self.broken_rules,
            self.unchecked_rules,
        )


class Fold:
    """Puts the deltas of all choices of one prompt together."""

    def __init__(self, ask: PreparedAsk) -> None:
        self.prompt = ask.prompt
        self._with_logprobs = ask.params.logprobs is not None
        self._prompt_logprobs: PromptLogprobs | None = None
        self._choices = [_Pieces() for _ in range(ask.params.n)]

    def add(self, delta: Delta) -> None:
        """Add the next delta of any choice."""
        self._choices[delta.index].add(delta)
        self._prompt_logprobs = self._prompt_logprobs or delta.prompt_logprobs or None
        if delta.broken_rules or delta.unchecked_rules:
            logger.warning(in_words(delta.broken_rules, delta.unchecked_rules).rstrip())

    def output(self) -> RequestOutput:
        """Return the answers. To be called once every choice has had its last delta."""
        return RequestOutput(
            self.prompt,
            [pieces.completion(i, with_logprobs=self._with_logprobs) for i, pieces in enumerate(self._choices)],
            self._prompt_logprobs,
        )
