"""The state of a request in the engine: its tokens, how many of them are in the KV cache, and in which blocks.

There are no phases. A sequence has `num_tokens` and `num_computed`, and the scheduler closes the gap between them: a
long gap is prefill, a gap of one is decoding, and preemption sets `num_computed` back to 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from ternvl.engine.cache.block_keys import BlockKeys
from ternvl.engine.cache.tiles import TileUse
from ternvl.engine.request import Request
from ternvl.sampling.speculation import Draft, Speculator
from ternvl.types import FinishReason, FirstToken, ImageSpan, PromptLogprobs, TokenLogprobs

if TYPE_CHECKING:
    from ternvl.sampling.grammar import Matcher


_NOTHING = range(0)


class Status(Enum):
    """The stages of a sequence."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True)
class Timing:
    """When a sequence was added and first ran, in seconds of `perf_counter`."""

    added: float = field(default_factory=time.perf_counter)
    started: float | None = None
    """The beginning of its first step. None before, and once the timing is taken."""
    encoding: tuple[float, float] | None = None
    """From the first to the last of its image tiles, as far as they were encoded for it."""

    def encoded(self, began: float, ended: float) -> None:
        """Note that tiles were encoded."""
        self.encoding = (began if self.encoding is None else self.encoding[0], ended)

    def take(self) -> FirstToken | None:
        """Return the times up to the first token, which is drawn now, the first time; None after that."""
        started, self.started = self.started, None
        return None if started is None else FirstToken(self.added, started, time.perf_counter(), self.encoding)


class Sequence:
    """The state of one request. Once it is added to the scheduler, only the scheduler changes it, except that the
    engine takes the scores."""

    __slots__ = (
        "arrival",
        "block_keys",
        "block_table",
        "finish_reason",
        "held_tiles",
        "matcher",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed",
        "num_found",
        "request",
        "scores",
        "seed",
        "sibling",
        "speculator",
        "status",
        "stop_ids",
        "timing",
        "token_ids",
    )

    def __init__(
        self,
        request: Request,
        *,
        arrival: int,
        seed: int,
        stop_ids: frozenset[int],
        max_model_len: int,
        block_size: int,
        sibling: Sequence | None = None,
        matcher: Matcher | None = None,
        shares_tiles: bool = True,
    ) -> None:
        """`arrival` orders sequences of equal priority. `stop_ids` are the model's own; the request's are added.

        `sibling` has the same prompt, whose blocks this sequence shares. `matcher` follows the request's grammar. With
        `shares_tiles`, images that begin with the same tiles share the blocks of these.
        """
        params = request.params
        self.request = request
        self.arrival, self.seed = arrival, seed
        self.timing = Timing()
        ignores_eos = params.ignore_eos and matcher is None  # a matcher allows these tokens only where the grammar ends
        self.stop_ids = frozenset(params.stop_token_ids) | (frozenset() if ignores_eos else stop_ids)
        self.matcher = matcher
        num_prompt_tokens = request.prompt.num_tokens
        # A prompt that fills the context has an answer of one token, which is drawn but never computed.
        longest = max(max_model_len, num_prompt_tokens + 1)
        limit = longest if params.max_tokens is None else params.max_tokens
        self.max_num_tokens = min(longest, num_prompt_tokens + limit)
        self.token_ids = list(request.prompt.token_ids)
        self.num_computed = self.num_found = 0  # found: in the cache when the sequence was queued, if it was looked up
        self.num_cached_tokens: int | None = None  # in the cache when the sequence first ran; None before
        self.block_table: list[int] = []
        self.block_keys = BlockKeys(request, block_size, by_tile=shares_tiles)
        self.sibling = sibling
        self.speculator = Speculator(request.prompt, self.stop_ids, matcher)
        self.held_tiles: list[TileUse] = []
        """Tiles whose features are kept for this sequence, because not all tokens of their image are computed yet."""
        self.status = Status.WAITING
        # An answer of 0 tokens has ended before it begins; the sequence runs until its prompt is computed.
        self.finish_reason: FinishReason | None = FinishReason.LENGTH if limit == 0 else None
        wants_scores = params.prompt_logprobs is not None and request.sibling_of is None
        self.scores: list[TokenLogprobs | None] | None = [None] if wants_scores else None
        """Log probabilities of the first tokens of the prompt, as far as they are computed; None if not wanted."""

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def order(self) -> tuple[int, int]:
        """The sort key of the queue, in ascending order: lower `priority` first, then earlier `arrival`."""
        return self.request.priority, self.arrival

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed(self) -> int:
        """The number of tokens that are not computed yet."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_known(self) -> int:
        """The number of first tokens that are computed, or were in the cache when the sequence was queued."""
        return max(self.num_computed, self.num_found)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.request.prompt.num_tokens

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.request.prompt.num_tokens :]

    @property
    def has_computed_prompt(self) -> bool:
        return self.num_computed >= self.request.prompt.num_tokens

    @property
    def waits_for_sibling(self) -> bool:
        """Whether a sibling is still computing the keys and values of the prompt."""
        sibling = self.sibling
        return sibling is not None and sibling.status is not Status.FINISHED and not sibling.has_computed_prompt

    @property
    def max_reuse(self) -> int:
        """The number of first tokens that need not be computed if the cache has them: all whose logits are not needed.

        The logits of the last token are needed for the draw, those of a prompt to score it.
        """
        return self.num_tokens - 1 if self.scores is None else len(self.scores) - 1

    def scored_before(self, stop: int) -> range:
        """Return the prompt's tokens that can be scored once all tokens before `stop` are computed, and are not yet."""
        if self.scores is None:
            return _NOTHING
        return range(len(self.scores), min(stop + 1, self.request.prompt.num_tokens))

    def add_scores(self, scores: PromptLogprobs) -> None:
        """Add the log probabilities of the next tokens of the prompt."""
        assert self.scores is not None, "the sequence is not scored"
        self.scores += scores

    def take_scores(self) -> PromptLogprobs:
        """Return the log probabilities of the whole prompt the first time, nothing after that."""
        scores, self.scores = self.scores, None
        return tuple(scores or ())

    def images_after(self, position: int) -> list[ImageSpan]:
        """Return the images with tokens at or after a position."""
        return [image for image in self.request.prompt.images if image.stop > position]

    def draft(self, limit: int, num_rows: int) -> Draft:
        """Return a draft of at most `limit` next tokens, and fewer than the sequence may still have.

        It is one fewer because the last token of an answer is drawn but never computed. `num_rows` is the number of
        rows that the step computes without the draft.
        """
        return self.speculator.draft(self.token_ids, min(limit, self.max_num_tokens - self.num_tokens - 1), num_rows)

    def extend(self, token_ids: Iterable[int]) -> int:
        """Append drawn tokens up to the one that ends the sequence, and return the number of tokens appended."""
        before = self.num_tokens
        for token_id in token_ids:
            if self.finish_reason is None:
                self._append(token_id)
        return self.num_tokens - before

    def _append(self, token_id: int) -> None:
        """Append a drawn token, and set `finish_reason` if it ends the sequence. A stop token is not appended."""
        if token_id in self.stop_ids:
            self.finish_reason = FinishReason.STOP
            return
        self.token_ids.append(token_id)
        if self.matcher is not None and self.matcher.accept(token_id):
            self.finish_reason = FinishReason.STOP
        elif self.num_tokens >= self.max_num_tokens:
            self.finish_reason = FinishReason.LENGTH


def adapter_names(sequences: Iterable[Sequence]) -> tuple[str, ...]:
    """Return the names of the adapters of sequences, in alphabetical order. Any thread may call it."""
    adapters = (sequence.request.adapter for sequence in tuple(sequences))
    return tuple(sorted({adapter.name for adapter in adapters if adapter is not None}))
