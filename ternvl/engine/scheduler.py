"""Which sequences compute how many tokens in the next step.

`schedule` returns a value and changes nothing; `update` makes it so after the step has run. A step that failed has
therefore left no trace here.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from ternvl.config import EngineConfig
from ternvl.engine.block_pool import BlockDraft, BlockPool
from ternvl.engine.sequence import Sequence, Status
from ternvl.errors import OverloadedError
from ternvl.types import FinishReason

_by_order = attrgetter("order")


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One sequence's share of a step. All its counts may be 0: then it waits with its blocks kept."""

    sequence: Sequence
    start: int
    """First token to compute; those before it are in the cache."""
    num_tokens: int
    first_tile: int
    """First image tile to encode, before the tokens are computed."""
    num_tiles: int
    block_table: tuple[int, ...]
    """Blocks for all tokens the sequence has."""
    new_blocks: tuple[int, ...]
    """The last of them, which the sequence has not yet."""
    samples: bool
    """Whether the step brings the sequence its next token."""

    @property
    def stop(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """What one step does."""

    chunks: tuple[Chunk, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    """Sequences that lose their blocks and will be computed again."""

    @property
    def sampling(self) -> list[Chunk]:
        """The chunks that bring a token, in order."""
        return [chunk for chunk in self.chunks if chunk.samples]


class _Budget:
    """What is left of a step's tokens and tiles."""

    def __init__(self, num_tokens: int, num_tiles: int) -> None:
        self.num_tokens = num_tokens
        self.num_tiles = num_tiles

    def spend(self, sequence: Sequence, new_blocks: tuple[int, ...]) -> Chunk:
        """As much of the sequence as there is left. Tokens of an image wait for its tiles; tiles wait for no token."""
        num_tiles = min(self.num_tiles, sequence.num_tiles - sequence.num_encoded_tiles)
        num_ready = sequence.num_ready(sequence.num_encoded_tiles + num_tiles) - sequence.num_computed
        num_tokens = min(self.num_tokens, num_ready)
        self.num_tiles -= num_tiles
        self.num_tokens -= num_tokens
        return Chunk(
            sequence=sequence,
            start=sequence.num_computed,
            num_tokens=num_tokens,
            first_tile=sequence.num_encoded_tiles,
            num_tiles=num_tiles,
            block_table=(*sequence.block_table, *new_blocks),
            new_blocks=new_blocks,
            samples=0 < num_tokens == sequence.num_uncomputed,
        )


class Scheduler:
    """The waiting and the running sequences, each in order of service."""

    def __init__(self, config: EngineConfig, pool: BlockPool) -> None:
        """The pool must hold the longest sequence that is ever added: then a lone one always goes on."""
        self.config = config
        self.pool = pool
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

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
        budget = _Budget(self.config.max_num_batched_tokens, self.config.max_num_batched_tiles)
        in_turn = sorted(growth, key=lambda sequence: sequence.num_uncomputed > 1)  # stable: order within
        chunks = [budget.spend(sequence, growth[sequence]) for sequence in in_turn]
        if not preempted:
            chunks += self._admit(draft, budget)
        return Schedule(tuple(chunks), tuple(preempted))

    def _make_room(self, draft: BlockDraft) -> tuple[dict[Sequence, tuple[int, ...]], list[Sequence]]:
        """New blocks of the sequences that stay, and those that must go, the last in order first."""
        staying, preempted = list(self.running), []
        growth: dict[Sequence, tuple[int, ...]] = {}
        for sequence in self.running:
            need = self._num_missing_blocks(sequence)
            while draft.num_free < need and sequence not in preempted:
                preempted.append(staying.pop())
                draft.release(preempted[-1].block_table)
            if sequence in preempted:
                break
            growth[sequence] = draft.take(need)
        return growth, preempted

    def _admit(self, draft: BlockDraft, budget: _Budget) -> Iterable[Chunk]:
        """Waiting sequences in order, until one does not fit: none overtakes it. Each gets room for all its tokens,
        so that it grows only by tokens that are drawn."""
        for sequence in self.waiting[: self.config.max_num_seqs - len(self.running)]:
            need = self._num_missing_blocks(sequence)
            if budget.num_tokens == 0 or draft.num_free < need:
                return
            yield budget.spend(sequence, draft.take(need))

    def _num_missing_blocks(self, sequence: Sequence) -> int:
        return self.pool.num_blocks_for(sequence.num_tokens) - len(sequence.block_table)

    def update(self, schedule: Schedule, token_ids: Iterable[int]) -> None:
        """Make a step that has run so. `token_ids` are the drawn ones, in the order of `schedule.sampling`."""
        for sequence in schedule.preempted:
            self._preempt(sequence)
        for chunk in schedule.chunks:
            self._advance(chunk)
        for chunk, token_id in zip(schedule.sampling, token_ids, strict=True):
            chunk.sequence.append(token_id)
            if chunk.sequence.finish_reason:
                self.finish(chunk.sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_by_order)
        self.num_preemptions += 1

    def _advance(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_by_order)
            sequence.status = Status.RUNNING
        self.pool.allocate(chunk.new_blocks)
        sequence.block_table += chunk.new_blocks
        sequence.num_computed += chunk.num_tokens
        sequence.num_encoded_tiles += chunk.num_tiles

    def _release(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        self.pool.free(sequence.block_table)
        sequence.block_table = []

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
        assert all(sequence.status is Status.RUNNING for sequence in self.running)
        assert all(sequence.status is Status.WAITING and not sequence.block_table for sequence in self.waiting)
        assert all(sequence.num_uncomputed > 0 for sequence in self.running + self.waiting)
        for queue in (self.running, self.waiting):
            assert queue == sorted(queue, key=_by_order)
        assert len(self.running) <= self.config.max_num_seqs
