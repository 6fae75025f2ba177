"""A request on its way: its tokens so far, how many of them are in the KV cache, and where.

There are no phases. A sequence has `num_tokens` and `num_computed`, and the scheduler closes the gap: a long one is
what others call prefill, a gap of one is decoding, and preemption sets `num_computed` back to 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING

from ternvl.engine.block_keys import BlockKeys
from ternvl.engine.request import Request
from ternvl.sampling.speculation import Draft, Speculator
from ternvl.types import FinishReason, ImageSpan

if TYPE_CHECKING:
    from ternvl.sampling.grammar import Matcher


class Status(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """The state of one request. Only `Scheduler` changes it once it is added."""

    __slots__ = (
        "arrival",
        "block_keys",
        "block_table",
        "finish_reason",
        "held_images",
        "matcher",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed",
        "request",
        "seed",
        "sibling",
        "speculator",
        "status",
        "stop_ids",
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
    ) -> None:
        """`arrival` orders sequences of equal priority. `stop_ids` are the model's own; the request's are added.
        `sibling` computes the same prompt, and this sequence goes on from its blocks. `matcher` follows its grammar."""
        params = request.params
        self.request = request
        self.arrival = arrival
        self.seed = seed
        ignores_eos = params.ignore_eos and matcher is None  # a matcher allows the end only where it must be
        self.stop_ids = frozenset(params.stop_token_ids) | (frozenset() if ignores_eos else stop_ids)
        self.matcher = matcher
        num_prompt_tokens = request.prompt.num_tokens
        # A prompt that fills the context has an answer of one token, which is drawn but never computed.
        longest = max(max_model_len, num_prompt_tokens + 1)
        self.max_num_tokens = min(longest, num_prompt_tokens + (params.max_tokens or longest))
        self.token_ids = list(request.prompt.token_ids)
        self.num_computed = 0
        self.num_cached_tokens: int | None = None
        """Tokens that were in the cache when the sequence first ran; None before."""
        self.block_table: list[int] = []
        self.block_keys = BlockKeys(request, block_size)
        self.sibling = sibling
        self.speculator = Speculator(request.prompt, self.stop_ids, matcher)
        self.held_images: list[ImageSpan] = []
        """Images whose features are kept for it: those that it has not computed past."""
        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def order(self) -> tuple[int, int]:
        """Sequences are served by ascending order: lower `priority` first, then first come, first served."""
        return self.request.priority, self.arrival

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

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
        """Whether a sibling will bring the prompt's keys and values, and has not yet."""
        sibling = self.sibling
        return sibling is not None and sibling.status is not Status.FINISHED and not sibling.has_computed_prompt

    def images_after(self, position: int) -> list[ImageSpan]:
        """Images with tokens at or after a position."""
        return [image for image in self.request.prompt.images if image.stop > position]

    def draft(self, limit: int, num_rows: int) -> Draft:
        """At most `limit` tokens that may come next, and fewer than may still come: the last is not to be computed.
        `num_rows` is what the step computes without them."""
        return self.speculator.draft(self.token_ids, min(limit, self.max_num_tokens - self.num_tokens - 1), num_rows)

    def extend(self, token_ids: Iterable[int]) -> int:
        """Take drawn tokens up to the end, where it is among them; how many were kept."""
        before = self.num_tokens
        for token_id in token_ids:
            if self.finish_reason is None:
                self._append(token_id)
        return self.num_tokens - before

    def _append(self, token_id: int) -> None:
        """Take a drawn token; sets `finish_reason` where it is the end. A token that stops is not kept."""
        if token_id in self.stop_ids:
            self.finish_reason = FinishReason.STOP
            return
        self.token_ids.append(token_id)
        if self.matcher is not None and self.matcher.accept(token_id):
            self.finish_reason = FinishReason.STOP
        elif self.num_tokens >= self.max_num_tokens:
            self.finish_reason = FinishReason.LENGTH
