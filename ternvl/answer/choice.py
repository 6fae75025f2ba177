"""Requests to a stream of deltas: what every endpoint's answer is made of, whatever its protocol.

tokens -> Detokenizer -> StopStrings -> ReasoningParser -> ToolCallParser -> Delta, one line a choice, merged
as they come.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from ternvl.engine.request import Request
from ternvl.errors import EngineError, UnavailableError
from ternvl.output.detokenizer import Detokenizer
from ternvl.output.reasoning import ReasoningParser
from ternvl.output.stop import StopStrings
from ternvl.output.tool_calls import TextDelta, ToolCallDelta, ToolCallParser
from ternvl.params import SamplingParams
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import FinishReason, TokenLogprobs, TokenOutput


class Submitter(Protocol):
    """What answers requests: `ternvl.engine.service.Service`. Closing the iterator aborts them."""

    def submit(self, *requests: Request, deadline: float | None = None) -> AsyncGenerator[TokenOutput]:
        """Outputs of requests until the end of each."""

    def abort(self, request_id: str) -> None:
        """End one of them early."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step adds to one choice. The last one of a choice has a finish reason."""

    index: int
    """Of the choice, from 0."""
    num_tokens: int
    """Tokens that were drawn, shown or not."""
    reasoning: str = ""
    """What the model thinks before it answers."""
    text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
    """Shown tokens with their log probabilities, where these were asked for."""
    num_cached_tokens: int = 0
    """Of the prompt, which the prefix cache spared."""
    finish_reason: str | None = None
    """"stop", "length" or "tool_calls"."""
    stop_string: str | None = None
    """The stop string that ended the choice, where one did."""


class ChoiceDecoder:
    """Tokens of one choice to deltas."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        params: SamplingParams,
        tool_names: Collection[str] = (),
        *,
        split_reasoning: bool = False,
    ) -> None:
        """Calls are looked for where there are `tool_names`, and the answer is drawn under the tools' grammar."""
        self._index = index
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stop = StopStrings(params.stop, include=params.include_stop_str_in_output)
        self._tool_calls = ToolCallParser(tool_names) if tool_names else None
        self._reasoning = ReasoningParser() if split_reasoning else None
        self._logprobs = _LogprobQueue()

    def decode(self, output: TokenOutput) -> Delta:
        """Raises UnavailableError where the engine gave the request up."""
        if output.finish_reason is FinishReason.ABORT:
            raise UnavailableError("The server is stopping and gave this request up.")
        text, num_tokens = self._text(output)
        if output.finish_reason:
            text += self._stop.decode(self._detokenizer.flush()) + self._stop.flush()
        finish_reason = FinishReason.STOP if self._stop.stopped else output.finish_reason
        logprobs = self._logprobs.take(len(text), rest=finish_reason is not None and not self._stop.stopped)
        reasoning, text = self._reason_apart(text, final=finish_reason is not None)
        pieces = self._split(text, final=finish_reason is not None)
        return Delta(
            index=self._index,
            num_tokens=num_tokens,
            reasoning=reasoning,
            text="".join(piece.text for piece in pieces if isinstance(piece, TextDelta)),
            tool_calls=tuple(piece for piece in pieces if isinstance(piece, ToolCallDelta)),
            logprobs=logprobs,
            num_cached_tokens=output.num_cached_tokens,
            finish_reason=self._reason(finish_reason),
            stop_string=self._stop.found,
        )

    def _text(self, output: TokenOutput) -> tuple[str, int]:
        """What may be shown of the new tokens, and how many they are: those after a stop string do not count."""
        text, num_tokens = "", 0
        logprobs = output.logprobs or (None,) * len(output.token_ids)
        for token_id, logprob in zip(output.token_ids, logprobs, strict=True):
            if self._stop.stopped:
                break
            piece = self._detokenizer.decode([token_id])
            if logprob is not None and token_id not in self._detokenizer.hidden_ids:
                self._logprobs.put(token_id, logprob, len(piece))
            text += self._stop.decode(piece)
            num_tokens += 1
        return text, num_tokens

    def _reason_apart(self, text: str, *, final: bool) -> tuple[str, str]:
        if self._reasoning is None:
            return "", text
        pieces = [self._reasoning.decode(text), self._reasoning.flush() if final else ("", "")]
        return pieces[0][0] + pieces[1][0], pieces[0][1] + pieces[1][1]

    def _split(self, text: str, *, final: bool) -> list[TextDelta | ToolCallDelta]:
        if self._tool_calls is None:
            return [TextDelta(text)]
        return self._tool_calls.decode(text) + (self._tool_calls.flush() if final else [])

    def _reason(self, reason: FinishReason | None) -> str | None:
        """A call that a stop string cut is none to carry out, so its reason stays "stop"."""
        calls = self._tool_calls
        if reason is FinishReason.STOP and calls and calls.num_calls and not calls.is_cut:
            return "tool_calls"
        return reason.value if reason else None


class _LogprobQueue:
    """Holds tokens back until their text is shown, so that tokens of a stop string are never listed."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, TokenLogprobs, int, int]] = []
        self._num_decoded = 0
        self._num_shown = 0

    def put(self, token_id: int, logprob: TokenLogprobs, num_characters: int) -> None:
        start = self._num_decoded
        self._num_decoded += num_characters
        self._waiting.append((token_id, logprob, start, self._num_decoded))

    def take(self, num_characters: int, *, rest: bool) -> tuple[tuple[int, TokenLogprobs], ...]:
        """Tokens whose text began before what is shown now ends; with `rest` all that wait."""
        self._num_shown += num_characters
        count = len(self._waiting) if rest else self._num_ready()
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return tuple((token_id, logprob) for token_id, logprob, _, _ in taken)

    def _num_ready(self) -> int:
        ready = (start < self._num_shown or stop == self._num_shown for _, _, start, stop in self._waiting)
        return next((index for index, is_ready in enumerate(ready) if not is_ready), len(self._waiting))


async def generate(
    service: Submitter,
    requests: Sequence[Request],
    tokenizer: Tokenizer,
    *,
    tool_names: Collection[str] = (),
    split_reasoning: bool = False,
    deadline: float | None = None,
) -> AsyncGenerator[Delta]:
    """Deltas of all requests as they come; request i is choice i.

    The first error of any request is raised and ends the others. Closing the generator aborts what still runs, and so
    does `deadline`, a time of the event loop's clock.
    """
    decoders = {
        request.id: ChoiceDecoder(index, tokenizer, request.params, tool_names, split_reasoning=split_reasoning)
        for index, request in enumerate(requests)
    }
    async with aclosing(service.submit(*requests, deadline=deadline)) as outputs:
        async for output in outputs:
            if output.request_id not in decoders:
                continue  # a stop string ended the answer
            delta = decoders[output.request_id].decode(output)
            if delta.finish_reason:
                del decoders[output.request_id]
                if output.finish_reason is None:
                    service.abort(output.request_id)
            yield delta
            if not decoders:
                return
    raise EngineError("The engine ended the answer without a reason.")
