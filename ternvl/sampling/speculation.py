"""Speculation by prompt lookup: guesses an answer's next tokens from what followed the same tokens before.

Answers that copy (transcripts, JSON, code, quotes) repeat runs of the prompt or of themselves (prompt lookup decoding,
Saxena 2023). The guessed tokens, a draft, are computed in the same step as the answer's last token, because reading the
weights costs more than a few further rows. Each row then draws its token as usual, and tokens of the draft are accepted
as long as the draws agree with them. So an answer is the same with and without speculation, at any temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ternvl.types import ImageSpan, Prompt

if TYPE_CHECKING:
    from ternvl.sampling.grammar import Matcher

ROW_COST = 0.1
"""Time of one further row of a step, relative to a step of one row; measured on a CPU for up to eight rows."""

_FIRST_RATE = 0.3
_STEP = 0.3
_MIN_RATE = 0.05
_FIRST_PAUSE, _LAST_PAUSE = 16, 128
_SHORTEST, _LONGEST = 3, 8
_MAX_CANDIDATES = 16
_MAX_LENGTH = 64
_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed next tokens of an answer."""

    token_ids: tuple[int, ...] = ()
    acceptance: AcceptanceRate | None = None
    """The statistic that records how many of them were accepted."""
    break_even: float = 0.0
    """Probability of acceptance at which the first token is worth its row."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def first(self, count: int) -> Draft:
        """Return the first `count` tokens as a draft."""
        return replace(self, token_ids=self.token_ids[:count])

    def record(self, num_accepted: int, position: int) -> None:
        """Record that `num_accepted` of its tokens were accepted; the answer now has `position` tokens."""
        if self.acceptance is not None:
            self.acceptance.record(num_accepted, len(self), position, self.break_even)


NO_DRAFT = Draft()


class AcceptanceRate:
    """The recent rate of accepted tokens of one kind of draft, which determines the length of the next draft."""

    def __init__(self) -> None:
        self._rate = _FIRST_RATE
        """Probability that a token is accepted if those before it were: a moving average."""
        self._pause = _FIRST_PAUSE
        self._resume = 0  # position in the answer at which a pause ends

    def length(self, position: int, num_rows: int) -> int:
        """Return the number of tokens to draft for an answer of `position` tokens, in a step of `num_rows` other rows.

        It maximises the expected number of tokens per time of the step. It is 0 during a pause and otherwise at least
        1, so that the rate can be measured again.
        """
        if position < self._resume:
            return 0
        length, probability = 0, self._rate
        num_tokens, cost = float(num_rows), step_cost(num_rows)
        while length < _MAX_LENGTH and probability / ROW_COST >= num_tokens / cost:
            length, num_tokens, cost = length + 1, num_tokens + probability, cost + ROW_COST
            probability *= self._rate
        return max(1, length)

    def record(self, num_accepted: int, num_drafted: int, position: int, break_even: float) -> None:
        """Record the outcome of a draft; the answer now has `position` tokens.

        If the rate falls below `break_even`, drafting pauses. Each pause is twice as long as the one before, until a
        token is accepted.
        """
        for _ in range(num_accepted):
            self._rate += _STEP * (1 - self._rate)
            self._pause = _FIRST_PAUSE
        if num_accepted < num_drafted:
            self._rate = max(_MIN_RATE, self._rate - _STEP * self._rate)
        if self._rate < break_even:
            self._resume = position + self._pause
            self._pause = min(2 * self._pause, _LAST_PAUSE)


def step_cost(num_rows: int) -> float:
    """Return the time of a step of `num_rows` rows, relative to a step of one row."""
    return 1 + ROW_COST * (num_rows - 1)


class Lookup:
    """An index of the runs of three tokens in one sequence, without the tokens of images.

    Runs of two tokens would recur in any prose, mostly with different continuations. The index grows with the sequence,
    at a constant cost per token.
    """

    def __init__(self, images: Sequence[ImageSpan]) -> None:
        self._images = images
        self._tokens: list[int] = []  # _NOTHING for tokens of images
        self._last: dict[tuple[int, ...], int] = {}  # by run: position after its last occurrence
        self._earlier: list[int] = []  # by position: position after the previous occurrence, or _NOTHING

    def find(self, token_ids: Sequence[int], limit: int) -> tuple[int, ...]:
        """Return at most `limit` tokens that followed an earlier occurrence of the last tokens of the sequence.

        `token_ids` is the whole sequence. The longest match counts, and among equally long ones the last.
        """
        self._catch_up(token_ids)
        start = self._find_best_match()
        if start == _NOTHING:
            return ()
        found: list[int] = []
        for position in range(start, start + limit):
            is_past_end = position >= len(self._tokens)  # a run that repeats itself continues in the tokens just found
            token_id = found[position - len(self._tokens)] if is_past_end else self._tokens[position]
            if token_id == _NOTHING:
                break
            found.append(token_id)
        return tuple(found)

    def _catch_up(self, token_ids: Sequence[int]) -> None:
        is_new = not self._tokens
        self._tokens += token_ids[len(self._tokens) :]
        if is_new:
            for image in self._images:
                self._tokens[image.start : image.stop] = [_NOTHING] * image.num_tokens
        for position in range(len(self._earlier), len(self._tokens)):  # the last run has no continuation yet
            run = tuple(self._tokens[max(0, position - _SHORTEST) : position])
            is_whole = len(run) == _SHORTEST and _NOTHING not in run
            self._earlier.append(self._last.get(run, _NOTHING) if is_whole else _NOTHING)
            if is_whole:
                self._last[run] = position

    def _find_best_match(self) -> int:
        """Return the position after the longest match, or _NOTHING."""
        position = self._last.get(tuple(self._tokens[-_SHORTEST:]), _NOTHING)
        best, longest = _NOTHING, 0
        for _ in range(_MAX_CANDIDATES):
            if position == _NOTHING or longest == _LONGEST:
                break
            length = self._match_length(position)
            if length > longest:
                best, longest = position, length
            position = self._earlier[position]
        return best

    def _match_length(self, position: int) -> int:
        """Return how many tokens before `position` equal those at the end of the sequence."""
        length, most = _SHORTEST, min(position, _LONGEST)
        while length < most and self._tokens[position - 1 - length] == self._tokens[-1 - length] != _NOTHING:
            length += 1
        return length


class Speculator:
    """Makes the drafts of one answer."""

    def __init__(self, prompt: Prompt, stop_ids: frozenset[int], matcher: Matcher | None = None) -> None:
        """A draft never contains a token of `stop_ids`, and only tokens that the grammar of `matcher` allows."""
        self._num_prompt_tokens = prompt.num_tokens
        self._stop_ids = stop_ids
        self._matcher = matcher
        self._lookup = Lookup(prompt.images)
        self._copied, self._forced = AcceptanceRate(), AcceptanceRate()

    def draft(self, token_ids: Sequence[int], limit: int, num_rows: int) -> Draft:
        """Return a draft of at most `limit` tokens to follow `token_ids`, the prompt and the answer so far.

        `num_rows` is the number of other rows of the step. Tokens that the grammar forces are used if there are any,
        else tokens that the lookup finds.
        """
        if limit <= 0:
            return NO_DRAFT
        position, break_even = len(token_ids) - self._num_prompt_tokens, ROW_COST * num_rows / step_cost(num_rows)
        if self._matcher is not None:
            forced = self._cut(self._matcher.forced(), min(limit, self._forced.length(position, num_rows)))
            if forced:
                return Draft(forced, self._forced, break_even)
        limit = min(limit, self._copied.length(position, num_rows))
        found = self._cut(self._lookup.find(token_ids, limit), limit) if limit else ()
        if self._matcher is not None and found:
            found = found[: self._matcher.num_allowed(found)]
        return Draft(found, self._copied, break_even)

    def _cut(self, token_ids: Sequence[int], limit: int) -> tuple[int, ...]:
        """Return the tokens before the first stop token, at most `limit` of them."""
        stop = next((index for index, each in enumerate(token_ids) if each in self._stop_ids), len(token_ids))
        return tuple(token_ids[: max(0, min(stop, limit))])
