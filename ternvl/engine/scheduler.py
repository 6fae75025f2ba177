"""Decides which sequences compute how many tokens in the next step, on which blocks, after which image tiles.

`schedule` returns a plan and changes nothing; `update` applies the plan after the step has run. After a step that
failed, `fail` applies only what the step may have done to the device's memory.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Iterable, Iterator
from operator import attrgetter

from ternvl.config import EngineConfig
from ternvl.engine.cache.block_pool import BlockDraft, BlockPool
from ternvl.engine.cache.tiles import TileCache, TileUse
from ternvl.engine.schedule import Chunk, Plan, Reuse, Schedule
from ternvl.engine.sequence import Sequence, Status
from ternvl.errors import OverloadedError
from ternvl.sampling.speculation import Draft
from ternvl.types import FinishReason, PromptLogprobs

_by_order = attrgetter("order")


class Scheduler:
    """The waiting and the running sequences, each in order of service."""

    def __init__(self, config: EngineConfig, pool: BlockPool, tiles: TileCache) -> None:
        """`config` must be resolved, without None. The pool must hold the longest sequence, so that one always runs."""
        self.config = config
        self.pool = pool
        self.tiles = tiles
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = self.num_prompt_tokens = self.num_prefix_hit_tokens = 0
        self.num_drafts = self.num_draft_tokens = self.num_accepted_tokens = 0
        self._planned = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def is_full(self) -> bool:
        """Whether the queue of waiting sequences is full."""
        return len(self.waiting) >= self.config.max_queue

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises OverloadedError if the queue is full."""
        if self.is_full:
            raise OverloadedError(f"The queue is full: {len(self.waiting)} requests are waiting already.")
        if self.config.max_queue_wait is not None or sequence.request.prompt.images:
            sequence.num_found = self._reuse(sequence, self.pool.draft()).num_tokens
        insort(self.waiting, sequence, key=_by_order)

    def schedule(self) -> Schedule:
        """Plan the next step. Sequences that get a token come first, so that no long prompt delays running answers."""
        self._planned = time.perf_counter()
        draft = self.pool.draft()
        growth, preempted = self._make_room(draft)
        tokens, tiles = self.config.max_num_batched_tokens, self.config.max_num_batched_tiles
        assert tokens is not None and tiles is not None  # noqa: PT018
        plan = Plan(tokens, tiles, self.tiles)
        decoding_first = sorted(growth, key=lambda sequence: sequence.num_uncomputed > 1)  # stable sort
        chunks = [plan.spend(sequence, growth[sequence]) for sequence in decoding_first]
        if not preempted:
            chunks += self._admit(draft, plan)
            chunks = self._speculate(chunks, draft, plan)
        return Schedule(tuple(chunks), tuple(plan.tiles.values()), plan.stored, tuple(preempted))

    def _make_room(self, draft: BlockDraft) -> tuple[dict[Sequence, tuple[int, ...]], list[Sequence]]:
        """Plan new blocks of the running sequences; preempt sequences, the last in order first, if blocks run out."""
        staying, preempted = list(self.running), []
        growth: dict[Sequence, tuple[int, ...]] = {}
        for sequence in self.running:
            need = self.pool.num_blocks_for(sequence.num_tokens) - len(sequence.block_table)
            while draft.num_free < need and sequence not in preempted:
                preempted.append(staying.pop())
                draft.release(preempted[-1].block_table)
            if sequence in preempted:
                break
            growth[sequence] = draft.take(need)
        return growth, preempted

    def _admit(self, draft: BlockDraft, plan: Plan) -> Iterator[Chunk]:
        """Admit waiting sequences in order until one does not fit, which no other overtakes.

        Each gets blocks for all its tokens, so that it needs further ones only for drawn tokens.
        """
        ready = [sequence for sequence in self.waiting if not sequence.waits_for_sibling]
        for sequence in ready[: self.config.max_num_seqs - len(self.running)]:
            reuse = self._reuse(sequence, draft)
            need = self.pool.num_blocks_for(sequence.num_tokens) - len(reuse.shared_blocks)
            if plan.num_tokens == 0 or draft.num_free < need + draft.num_newly_used(reuse.shared_blocks):
                return
            draft.share(reuse.shared_blocks)
            yield plan.spend(sequence, draft.take(need), reuse)

    def _speculate(self, chunks: list[Chunk], free: BlockDraft, plan: Plan) -> list[Chunk]:
        """Add drafts to chunks, while the step is so small that a further row costs little, on blocks that are free.

        Chunks with the shortest drafts are served first, so that the room that they leave goes to the others.
        """
        num_rows = sum(chunk.num_tokens for chunk in chunks)
        room = min(plan.num_tokens, 1 + self.config.num_speculative_tokens - num_rows)
        if self.config.speculation != "ngram" or room <= 0:
            return chunks
        wanted = [(chunk.sequence.draft(room, num_rows), chunk) for chunk in chunks if chunk.samples]
        drafted: dict[Chunk, Chunk] = {}
        for number, (draft, chunk) in enumerate(sorted(wanted, key=lambda pair: len(pair[0]))):
            drafted[chunk] = self._with_draft(chunk, draft.first(room // (len(wanted) - number)), free)
            room -= len(drafted[chunk].draft)
        return [drafted.get(chunk, chunk) for chunk in chunks]

    def _with_draft(self, chunk: Chunk, draft: Draft, free: BlockDraft) -> Chunk:
        """Add as many tokens of the draft to the chunk as there are blocks for."""
        room = (len(chunk.block_table) + free.num_free) * self.pool.block_size - chunk.stop
        draft = draft.first(room)
        need = self.pool.num_blocks_for(chunk.stop + len(draft)) - len(chunk.block_table)
        return chunk.with_draft(draft, free.take(need)) if draft else chunk

    def _reuse(self, sequence: Sequence, draft: BlockDraft) -> Reuse:
        """Find what is in the cache already. Tokens whose logits are needed are computed nevertheless."""
        block_size = self.pool.block_size
        sibling = sequence.sibling
        if sibling is not None and sibling.status is Status.RUNNING:
            num_tokens = sequence.request.prompt.num_tokens - 1
            num_full, rest = divmod(num_tokens, block_size)
            copied = sibling.block_table[num_full] if rest else None
            return Reuse(tuple(sibling.block_table[:num_full]), num_tokens, copied)
        if not self.config.enable_prefix_caching:
            return Reuse()
        blocks = draft.match(sequence.block_keys.first(sequence.max_reuse // block_size, sequence.token_ids))
        return Reuse(blocks, len(blocks) * block_size)

    def update(self, schedule: Schedule, drawn: Iterable[Iterable[int]], scores: Iterable[PromptLogprobs] = ()) -> None:
        """Apply the plan of a step that has run.

        `drawn` has the tokens of each chunk of `schedule.sampling`: the accepted tokens of the draft and one more, of
        which those after the end of the answer are dropped. `scores` has those of each chunk of `schedule.scoring`.
        """
        for sequence in schedule.preempted:
            self._preempt(sequence)
        for chunk in schedule.chunks:
            self._take_blocks(chunk)
        self.tiles.finish((work.key for work in schedule.tiles), schedule.stored)
        for chunk, values in zip(schedule.scoring, scores, strict=True):
            chunk.sequence.add_scores(values)
        tokens = dict(zip(schedule.sampling, drawn, strict=True))
        for chunk in schedule.chunks:
            self._advance(chunk, tuple(tokens.get(chunk, ())))
        for chunk in tokens:
            if chunk.sequence.finish_reason:
                self.finish(chunk.sequence)
        if self.pool.events is not None:
            self.pool.events.flush()

    def fail(self, schedule: Schedule) -> None:
        """Apply what remains of a step that failed.

        It may have written to its new blocks, so their earlier content must not be found any more. The preempted
        sequences have lost their blocks.
        """
        for sequence in schedule.preempted:
            self._preempt(sequence)
        for chunk in schedule.chunks:
            self.pool.forget(chunk.new_blocks)
        if self.pool.events is not None:
            self.pool.events.flush()

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_by_order)
        self.num_preemptions += 1

    def _take_blocks(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        self.pool.share(chunk.reuse.shared_blocks)
        self.pool.allocate(chunk.new_blocks)
        sequence.block_table = list(chunk.block_table)
        if sequence.status is Status.WAITING:
            self._start_running(sequence, chunk.start)

    def _start_running(self, sequence: Sequence, start: int) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_by_order)
        sequence.status = Status.RUNNING
        if sequence.num_cached_tokens is None:
            sequence.timing.started = self._planned
            if sequence.sibling is None:
                self.num_prompt_tokens += sequence.num_tokens
                self.num_prefix_hit_tokens += start
            sequence.num_cached_tokens = sequence.sibling.num_cached_tokens if sequence.sibling else start
        for image in sequence.images_after(start):
            use = TileUse(image, image.tiles_after(start).start)
            self.tiles.acquire(use)
            sequence.held_tiles.append(use)

    def _advance(self, chunk: Chunk, token_ids: tuple[int, ...]) -> None:
        sequence = chunk.sequence
        num_kept = sequence.extend(token_ids)
        num_accepted = min(num_kept, max(0, len(token_ids) - 1))  # the last token was drawn but is not computed yet
        sequence.num_computed = chunk.start + chunk.num_own_tokens + num_accepted
        if chunk.draft:
            self._settle_draft(chunk, num_accepted)
        self._release_tiles(sequence, before=sequence.num_computed)
        self._register(sequence, chunk.start // self.pool.block_size)

    def _settle_draft(self, chunk: Chunk, num_accepted: int) -> None:
        """Record the outcome of a draft, and free the blocks of its rejected tokens."""
        sequence, draft = chunk.sequence, chunk.draft
        self.num_drafts += 1
        self.num_draft_tokens += len(draft)
        self.num_accepted_tokens += num_accepted
        draft.record(num_accepted, sequence.num_output_tokens)
        num_needed = self.pool.num_blocks_for(sequence.num_tokens)
        self.pool.free(sequence.block_table[num_needed:])
        del sequence.block_table[num_needed:]

    def _register(self, sequence: Sequence, first: int) -> None:
        """Register the keys of blocks that are full of computed tokens, from number `first` on."""
        if self.config.enable_prefix_caching:
            num_full = sequence.num_computed // self.pool.block_size
            keys = sequence.block_keys.first(num_full, sequence.token_ids)
            blocks = enumerate(zip(sequence.block_table[first:num_full], keys[first:], strict=True), first)
            new = [index for index, (block, key) in blocks if self.pool.register(block, key)]
            if new and self.pool.events is not None:
                self.pool.events.stored(sequence.block_keys, sequence.token_ids, new)

    def _release(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        self.pool.free(sequence.block_table)
        sequence.block_table = []
        self._release_tiles(sequence)

    def _release_tiles(self, sequence: Sequence, before: int | None = None) -> None:
        """Release the tiles of images that end before a position, by default all of them."""
        while sequence.held_tiles and (before is None or sequence.held_tiles[0].image.stop <= before):
            self.tiles.release(sequence.held_tiles.pop(0))

    def missing_tiles(self, sequences: Iterable[Sequence]) -> Iterator[bytes]:
        """Yield the tiles that sequences need and that have no features yet, in order. Any thread may call it."""
        for sequence in sequences:
            start = sequence.num_known
            for image in sequence.images_after(start):
                needed = TileUse(image, image.tiles_after(start).start).keys
                yield from (key for key in needed if not self.tiles.is_encoded(key))

    def next_missing_tiles(self) -> Iterator[bytes]:
        """Yield the tiles without features that the next steps need, in order."""
        admissible = self.waiting[: self.config.max_num_seqs - len(self.running)]
        return self.missing_tiles([*self.running, *admissible])

    def finish(self, sequence: Sequence, reason: FinishReason | None = None) -> None:
        """Remove a sequence and free its blocks at once. `reason` replaces the sequence's own."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason or sequence.finish_reason

    def check_integrity(self) -> None:
        """Assert the invariants that hold between any two steps."""
        self.pool.check_integrity(sequence.block_table for sequence in self.running)
        self.tiles.check_integrity(use for sequence in self.running for use in sequence.held_tiles)
        assert all(sequence.status is Status.RUNNING for sequence in self.running)
        assert all(sequence.status is Status.WAITING for sequence in self.waiting)
        assert not any(sequence.block_table or sequence.held_tiles for sequence in self.waiting)
        assert all(sequence.num_uncomputed > 0 for sequence in self.running + self.waiting)
        for queue in (self.running, self.waiting):
            assert queue == sorted(queue, key=_by_order)
        assert len(self.running) <= self.config.max_num_seqs
