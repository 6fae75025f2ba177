"""Speculation by prompt lookup: an answer's next tokens are guessed from what followed the same tokens before.

Answers that copy (transcripts, JSON, code, quotes) repeat runs of the prompt or of themselves (prompt lookup decoding,
Saxena 2023). The guessed tokens, a draft, are computed in the step that computes the answer's last token: reading the
weights once costs more than a few further rows. Each row then draws its token as it always does, and the draft holds
for as long as the draws agree with it. So an answer is the same with and without, whatever the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ternvl.types import ImageSpan, Prompt

if TYPE_CHECKING:
    from ternvl.sampling.grammar import Matcher

ROW_COST = 0.1
"""What a further row of a step costs, in steps of one row, on a CPU and up to eight of them."""

_FIRST_RATE = 0.3
_STEP = 0.3
_LEAST_RATE = 0.05
_FIRST_PAUSE, _LAST_PAUSE = 16, 128
_SHORTEST, _LONGEST = 3, 8
_MAX_CANDIDATES = 16
_MAX_LENGTH = 64
_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that an answer may go on with."""

    token_ids: tuple[int, ...] = ()
    trust: Trust | None = None
    """What learns whether they held."""
    least: float = 0.0
    """Chance that its first token must have to be worth a row."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def first(self, count: int) -> Draft:
        """Its beginning."""
        return replace(self, token_ids=self.token_ids[:count])

    def judge(self, num_accepted: int, position: int) -> None:
        """Learn that so many of its tokens held, after which the answer has `position` tokens."""
        if self.trust is not None:
            self.trust.judge(num_accepted, len(self), position, self.least)


NO_DRAFT = Draft()


class Trust:
    """How often drafts of one kind have held lately, and so how long the next may be."""

    def __init__(self) -> None:
        self._rate = _FIRST_RATE
        """Chance that a token holds after those before it have: a moving average."""
        self._pause = _FIRST_PAUSE
        self._resume = 0

    def length(self, position: int, num_rows: int) -> int:
        """Tokens to draft for an answer of `position` tokens in a step of `num_rows` without them, so that the step
        brings most tokens for its time; 0 in a pause, and at least one to learn from after it."""
        if position < self._resume:
            return 0
        length, chance = 0, self._rate
        num_tokens, cost = float(num_rows), step_cost(num_rows)
        while length < _MAX_LENGTH and chance / ROW_COST >= num_tokens / cost:
            length, num_tokens, cost = length + 1, num_tokens + chance, cost + ROW_COST
            chance *= self._rate
        return max(1, length)

    def judge(self, num_accepted: int, num_drafted: int, position: int, least: float) -> None:
        """Learn from a draft, after which the answer has `position` tokens. A rate below `least` brings a pause, each
        twice as long as the last until a token holds."""
        for _ in range(num_accepted):
            self._rate += _STEP * (1 - self._rate)
            self._pause = _FIRST_PAUSE
        if num_accepted < num_drafted:
            self._rate = max(_LEAST_RATE, self._rate - _STEP * self._rate)
        if self._rate < least:
            self._resume = position + self._pause
            self._pause = min(2 * self._pause, _LAST_PAUSE)


def step_cost(num_rows: int) -> float:
    """Time of a step of so many rows, in steps of one."""
    return 1 + ROW_COST * (num_rows - 1)


class Lookup:
    """Where each run of three tokens has occurred in one sequence. Tokens of images are no part of it. Two tokens alone
    recur in any prose, and what follows them is seldom the same.

    An index that grows with the sequence: a token costs the same, however many came before it.
    """

    def __init__(self, images: Sequence[ImageSpan]) -> None:
        self._images = images
        self._tokens: list[int] = []  # _NOTHING in images
        self._last: dict[tuple[int, ...], int] = {}  # by run: the position after its last occurrence
        self._earlier: list[int] = []  # by position: that after the run's occurrence before, or _NOTHING

    def find(self, token_ids: Sequence[int], limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that followed the longest run of tokens that `token_ids`, the sequence's, ends in; of
        equally long ones what followed last."""
        self._catch_up(token_ids)
        start = self._best()
        if start == _NOTHING:
            return ()
        found: list[int] = []
        for position in range(start, start + limit):
            is_own = position >= len(self._tokens)  # a run that repeats itself goes on in what it has just given
            token_id = found[position - len(self._tokens)] if is_own else self._tokens[position]
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
        for position in range(len(self._earlier), len(self._tokens)):  # nothing follows the very end
            run = tuple(self._tokens[max(0, position - _SHORTEST) : position])
            is_whole = len(run) == _SHORTEST and _NOTHING not in run
            self._earlier.append(self._last.get(run, _NOTHING) if is_whole else _NOTHING)
            if is_whole:
                self._last[run] = position

    def _best(self) -> int:
        """The position after the longest match, or _NOTHING."""
        position = self._last.get(tuple(self._tokens[-_SHORTEST:]), _NOTHING)
        best, longest = _NOTHING, 0
        for _ in range(_MAX_CANDIDATES):
            if position == _NOTHING or longest == _LONGEST:
                break
            length = self._match(position)
            if length > longest:
                best, longest = position, length
            position = self._earlier[position]
        return best

    def _match(self, position: int) -> int:
        """Tokens before `position` that are also those at the end."""
        length, most = _SHORTEST, min(position, _LONGEST)
        while length < most and self._tokens[position - 1 - length] == self._tokens[-1 - length] != _NOTHING:
            length += 1
        return length


class Speculator:
    """Drafts for one answer."""

    def __init__(self, prompt: Prompt, stop_ids: frozenset[int], matcher: Matcher | None = None) -> None:
        """Nothing is drafted beyond a token of `stop_ids`, and only what `matcher`'s grammar allows."""
        self._num_prompt_tokens = prompt.num_tokens
        self._stop_ids = stop_ids
        self._matcher = matcher
        self._lookup = Lookup(prompt.images)
        self._copied, self._forced = Trust(), Trust()

    def draft(self, token_ids: Sequence[int], limit: int, num_rows: int) -> Draft:
        """At most `limit` tokens to follow the prompt and answer so far, `token_ids`, in a step that has `num_rows`
        without them: what the grammar leaves no choice about, else what is looked up."""
        if limit <= 0:
            return NO_DRAFT
        position, least = len(token_ids) - self._num_prompt_tokens, ROW_COST * num_rows / step_cost(num_rows)
        if self._matcher is not None:
            forced = self._cut(self._matcher.forced(), min(limit, self._forced.length(position, num_rows)))
            if forced:
                return Draft(forced, self._forced, least)
        limit = min(limit, self._copied.length(position, num_rows))
        found = self._cut(self._lookup.find(token_ids, limit), limit) if limit else ()
        if self._matcher is not None and found:
            found = found[: self._matcher.num_allowed(found)]
        return Draft(found, self._copied, least)

    def _cut(self, token_ids: Sequence[int], limit: int) -> tuple[int, ...]:
        stop = next((index for index, each in enumerate(token_ids) if each in self._stop_ids), len(token_ids))
        return tuple(token_ids[: max(0, min(stop, limit))])
