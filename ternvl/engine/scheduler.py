"""Which sequences compute how many tokens in the next step, on which blocks, after which image tiles.

`schedule` returns a value and changes nothing; `update` makes it so after the step has run. Of a step that failed,
`fail` keeps only what the device may remember.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from operator import attrgetter

from ternvl.config import EngineConfig
from ternvl.engine.block_pool import BlockDraft, BlockPool
from ternvl.engine.image_cache import ImageCache
from ternvl.engine.schedule import Chunk, Plan, Reuse, Schedule
from ternvl.engine.sequence import Sequence, Status
from ternvl.errors import OverloadedError
from ternvl.types import FinishReason

_by_order = attrgetter("order")


class Scheduler:
    """The waiting and the running sequences, each in order of service."""

    def __init__(self, config: EngineConfig, pool: BlockPool, images: ImageCache) -> None:
        """`config` is without None. The pool must hold the longest sequence that is ever added: then a lone one always
        goes on."""
        self.config = config
        self.pool = pool
        self.images = images
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = self.num_prompt_tokens = self.num_prefix_hit_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def is_full(self) -> bool:
        """Whether the queue takes no more."""
        return len(self.waiting) >= self.config.max_queue

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises OverloadedError where the queue is full."""
        if self.is_full:
            raise OverloadedError(f"{len(self.waiting)} requests are waiting, which is all the queue holds.")
        insort(self.waiting, sequence, key=_by_order)

    def schedule(self) -> Schedule:
        """The next step. Those that are about to get a token come first, so that a long prompt holds up no stream."""
        draft = self.pool.draft()
        growth, preempted = self._make_room(draft)
        tokens, tiles = self.config.max_num_batched_tokens, self.config.max_num_batched_tiles
        assert tokens is not None and tiles is not None  # noqa: PT018
        plan = Plan(tokens, tiles, self.images)
        in_turn = sorted(growth, key=lambda sequence: sequence.num_uncomputed > 1)  # stable: order within
        chunks = [plan.spend(sequence, growth[sequence]) for sequence in in_turn]
        if not preempted:
            chunks += self._admit(draft, plan)
        return Schedule(tuple(chunks), tuple(plan.tiles.values()), tuple(preempted))

    def _make_room(self, draft: BlockDraft) -> tuple[dict[Sequence, tuple[int, ...]], list[Sequence]]:
        """New blocks of the sequences that stay, and those that must go, the last in order first."""
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
        """Waiting sequences in order, until one does not fit: none overtakes it. Each gets room for all its tokens,
        so that it grows only by tokens that are drawn."""
        ready = [sequence for sequence in self.waiting if not sequence.waits_for_sibling]
        for sequence in ready[: self.config.max_num_seqs - len(self.running)]:
            reuse = self._reuse(sequence, draft)
            need = self.pool.num_blocks_for(sequence.num_tokens) - len(reuse.shared_blocks)
            if plan.num_tokens == 0 or draft.num_free < need + draft.num_woken(reuse.shared_blocks):
                return
            draft.share(reuse.shared_blocks)
            yield plan.spend(sequence, draft.take(need), reuse)

    def _reuse(self, sequence: Sequence, draft: BlockDraft) -> Reuse:
        """What is there already. The last token is always computed: its logits are wanted."""
        block_size = self.pool.block_size
        sibling = sequence.sibling
        if sibling is not None and sibling.status is Status.RUNNING:
            num_tokens = sequence.request.prompt.num_tokens - 1
            num_full, rest = divmod(num_tokens, block_size)
            copied = sibling.block_table[num_full] if rest else None
            return Reuse(tuple(sibling.block_table[:num_full]), num_tokens, copied)
        if not self.config.enable_prefix_caching:
            return Reuse()
        count = (sequence.num_tokens - 1) // block_size
        blocks = draft.match(sequence.block_keys.first(count, sequence.token_ids))
        return Reuse(blocks, len(blocks) * block_size)

    def update(self, schedule: Schedule, token_ids: Iterable[int]) -> None:
        """Make a step that has run so. `token_ids` are the drawn ones, in the order of `schedule.sampling`."""
        for sequence in schedule.preempted:
            self._preempt(sequence)
        for chunk in schedule.chunks:
            self._take_blocks(chunk)
        for work in schedule.tiles:
            self.images.advance(work.image.digest, work.count)
        for chunk in schedule.chunks:
            self._advance(chunk)
        for chunk, token_id in zip(schedule.sampling, token_ids, strict=True):
            chunk.sequence.append(token_id)
            if chunk.sequence.finish_reason:
                self.finish(chunk.sequence)

    def fail(self, schedule: Schedule) -> None:
        """A step has failed, after it may have written to its new blocks: nobody may find there what was there before.
        Those that were to give blocks up have lost them."""
        for sequence in schedule.preempted:
            self._preempt(sequence)
        for chunk in schedule.chunks:
            self.pool.forget(chunk.new_blocks)

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
            self._let_in(sequence, chunk.start)

    def _let_in(self, sequence: Sequence, start: int) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_by_order)
        sequence.status = Status.RUNNING
        if sequence.sibling is None:
            self.num_prompt_tokens += sequence.num_tokens
            self.num_prefix_hit_tokens += start
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.sibling.num_cached_tokens if sequence.sibling else start
        for image in sequence.images_after(start):
            self.images.acquire(image)
            sequence.held_images.append(image)

    def _advance(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        first, sequence.num_computed = chunk.start // self.pool.block_size, chunk.stop
        self._release_images(sequence, before=chunk.stop)
        if self.config.enable_prefix_caching:
            num_full = chunk.stop // self.pool.block_size
            keys = sequence.block_keys.first(num_full, sequence.token_ids)
            for block, key in zip(sequence.block_table[first:num_full], keys[first:], strict=True):
                self.pool.register(block, key)

    def _release(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        self.pool.free(sequence.block_table)
        sequence.block_table = []
        self._release_images(sequence)

    def _release_images(self, sequence: Sequence, before: int | None = None) -> None:
        """Let go of images that end before a position, by default of all."""
        while sequence.held_images and (before is None or sequence.held_images[0].stop <= before):
            self.images.release(sequence.held_images.pop(0).digest)

    def finish(self, sequence: Sequence, reason: FinishReason | None = None) -> None:
        """Take a sequence out and free its blocks at once. `reason` replaces the sequence's own."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason or sequence.finish_reason

    def check_integrity(self) -> None:
        """Assert what holds between any two steps."""
        self.pool.check_integrity(sequence.block_table for sequence in self.running)
        self.images.check_integrity(image.digest for sequence in self.running for image in sequence.held_images)
        assert all(sequence.status is Status.RUNNING for sequence in self.running)
        for sequence in self.waiting:
            assert sequence.status is Status.WAITING
            assert not sequence.block_table
            assert not sequence.held_images
        assert all(sequence.num_uncomputed > 0 for sequence in self.running + self.waiting)
        for queue in (self.running, self.waiting):
            assert queue == sorted(queue, key=_by_order)
        assert len(self.running) <= self.config.max_num_seqs
