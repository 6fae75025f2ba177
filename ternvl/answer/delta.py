"""The tokens of one choice to deltas: what every door hands on, whatever its protocol.

tokens -> Detokenizer -> StopStrings -> ReasoningParser -> ToolCallParser -> Delta. The last delta of a choice says
which rules of schemas its calls break.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from ternvl.answer.checks import BrokenRule, CallChecks
from ternvl.errors import UnavailableError
from ternvl.output.detokenizer import Detokenizer
from ternvl.output.reasoning import ReasoningParser
from ternvl.output.stop import StopStrings
from ternvl.output.tool_calls import TextDelta, ToolCallDelta, ToolCallParser
from ternvl.params import SamplingParams
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.call_rules import CallRules
from ternvl.types import FinishReason, FirstToken, PromptLogprobs, TokenLogprobs, TokenOutput

ListedToken = tuple[int, TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step adds to one choice. The last delta of a choice has a finish reason."""

    index: int
    """Of the choice, from 0."""
    token_ids: tuple[int, ...] = ()
    """Tokens that were drawn, shown or not. Without a token that stops the answer or follows a stop string."""
    reasoning: str = ""
    """What the model thinks before it answers."""
    text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    token_logprobs: tuple[TokenLogprobs, ...] = ()
    """Beside `token_ids`, if log probabilities were asked for."""
    logprobs: tuple[ListedToken, ...] = ()
    """Tokens whose text is shown by now, with their log probabilities: those of stop strings never are."""
    all_logprobs: tuple[ListedToken, ...] = ()
    """`logprobs` with the tokens that have no text: control tokens, and the token that stopped the answer."""
    prompt_logprobs: PromptLogprobs = ()
    """Of the whole prompt, in the first delta of its first choice, if they were asked for."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the prefix cache."""
    timing: tuple[float, float] | None = field(default=None, compare=False)
    """The seconds that the choice waited, and those from its first step to its first token; in its first delta."""
    first_token: FirstToken | None = field(default=None, compare=False)
    """The moments that `timing` is the differences of."""
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    """The stop string that ended the choice, if one did."""
    broken_rules: tuple[BrokenRule, ...] = ()
    """Rules that the grammar does not enforce and that calls of the choice break; only in its last delta."""
    unchecked_rules: tuple[str, ...] = ()
    """Paths of such rules that could not be checked; only in its last delta."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


class ChoiceDecoder:
    """Turns the tokens of one choice into deltas."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        params: SamplingParams,
        tool_names: Collection[str] = (),
        *,
        split_reasoning: bool = False,
        rules: CallRules | None = None,
    ) -> None:
        """Tool calls are parsed if there are `tool_names`; the answer is then drawn under the tools' grammar.

        `rules` are those that the grammar does not enforce.
        """
        self._index = index
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stop = StopStrings(params.stop, include=params.include_stop_str_in_output)
        self._tool_calls = ToolCallParser(tool_names) if tool_names else None
        self._reasoning = ReasoningParser() if split_reasoning else None
        self._logprobs = _LogprobQueue()
        self._checks = CallChecks(rules) if rules else None

    def decode(self, output: TokenOutput) -> Delta:
        """Return what an output adds. Raises UnavailableError if the engine gave the request up."""
        if output.finish_reason is FinishReason.ABORT:
            raise UnavailableError("The server is stopping and gave this request up.")
        text, num_tokens = self._text(output)
        if output.finish_reason:
            text += self._stop.decode(self._detokenizer.flush()) + self._stop.flush()
        finish_reason = FinishReason.STOP if self._stop.stopped else output.finish_reason
        is_last = finish_reason is not None
        listed = self._logprobs.take(len(text), rest=is_last and not self._stop.stopped)
        reasoning, text = self._split_reasoning(text, final=is_last)
        pieces = self._split_calls(text, final=is_last)
        calls = tuple(piece for piece in pieces if isinstance(piece, ToolCallDelta))
        first = output.first_token
        if self._checks is not None:
            self._checks.add(calls)
        return Delta(
            index=self._index,
            token_ids=output.token_ids[:num_tokens],
            reasoning=reasoning,
            text="".join(piece.text for piece in pieces if isinstance(piece, TextDelta)),
            tool_calls=calls,
            token_logprobs=output.logprobs[:num_tokens],
            logprobs=tuple(each for each in listed if each[0] not in self._detokenizer.hidden_ids),
            all_logprobs=(*listed, output.stop) if output.stop is not None and not self._stop.stopped else listed,
            prompt_logprobs=output.prompt_logprobs,
            num_cached_tokens=output.num_cached_tokens,
            timing=None if first is None else (first.queue_seconds, first.prefill_seconds),
            first_token=first,
            finish_reason=self._finish_reason(finish_reason),
            stop_string=self._stop.found,
        )

    def must_check(self, delta: Delta) -> bool:
        """Whether `check` has something to add to a delta."""
        return self._checks is not None and delta.finish_reason is not None

    def check(self, delta: Delta) -> Delta:
        """Return the choice's last delta with the rules that its calls break, any other delta as it is.

        It may take as long as `CallChecks.result`.
        """
        if self._checks is None or delta.finish_reason is None:
            return delta
        broken, unchecked = self._checks.result()
        return replace(delta, broken_rules=broken, unchecked_rules=unchecked)

    def _text(self, output: TokenOutput) -> tuple[str, int]:
        """The text of the new tokens as far as it may be shown, and the number of tokens up to a stop string's end."""
        text, num_tokens = "", 0
        logprobs = output.logprobs or (None,) * len(output.token_ids)
        for token_id, logprob in zip(output.token_ids, logprobs, strict=True):
            if self._stop.stopped:
                break
            piece = self._detokenizer.decode([token_id])
            if logprob is not None:
                self._logprobs.put(token_id, logprob, len(piece))
            text += self._stop.decode(piece)
            num_tokens += 1
        return text, num_tokens

    def _split_reasoning(self, text: str, *, final: bool) -> tuple[str, str]:
        if self._reasoning is None:
            return "", text
        pieces = [self._reasoning.decode(text), self._reasoning.flush() if final else ("", "")]
        return pieces[0][0] + pieces[1][0], pieces[0][1] + pieces[1][1]

    def _split_calls(self, text: str, *, final: bool) -> list[TextDelta | ToolCallDelta]:
        if self._tool_calls is None:
            return [TextDelta(text)]
        return self._tool_calls.decode(text) + (self._tool_calls.flush() if final else [])

    def _finish_reason(self, reason: FinishReason | None) -> FinishReason | None:
        """A call that a stop string cut must not be carried out, so its reason stays "stop"."""
        calls = self._tool_calls
        if reason is FinishReason.STOP and calls and calls.num_calls and not calls.is_cut:
            return FinishReason.TOOL_CALLS
        return reason


class _LogprobQueue:
    """Holds tokens back until their text is shown, so that the tokens of a stop string are never listed."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, TokenLogprobs, int, int]] = []
        self._num_decoded = 0
        self._num_shown = 0

    def put(self, token_id: int, logprob: TokenLogprobs, num_characters: int) -> None:
        start = self._num_decoded
        self._num_decoded += num_characters
        self._waiting.append((token_id, logprob, start, self._num_decoded))

    def take(self, num_characters: int, *, rest: bool) -> tuple[ListedToken, ...]:
        """Return the tokens whose text begins before the end of what is shown now; with `rest`, all held tokens."""
        self._num_shown += num_characters
        count = len(self._waiting) if rest else self._num_ready()
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return tuple((token_id, logprob) for token_id, logprob, _, _ in taken)

    def _num_ready(self) -> int:
        ready = (start < self._num_shown or stop == self._num_shown for _, _, start, stop in self._waiting)
        return next((index for index, is_ready in enumerate(ready) if not is_ready), len(self._waiting))
