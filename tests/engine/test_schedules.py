"""Random schedules against a model of the memory: what a step reads is what its sequence wrote, whatever was shared,
copied, evicted, preempted or aborted in between, and whatever step failed.

Each slot of the simulated cache holds a hash of the whole prefix up to its token. Before a chunk is computed, every
position before it must hold its prefix; images must be encoded before their tokens are computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ternvl.config import EngineConfig
from ternvl.engine.cache.block_pool import BlockPool
from ternvl.engine.cache.tiles import TileCache
from ternvl.engine.request import Request
from ternvl.engine.schedule import Chunk, Schedule
from ternvl.engine.scheduler import Scheduler
from ternvl.engine.sequence import Sequence, Status
from ternvl.params import SamplingParams
from ternvl.types import ImageSpan, Prompt, PromptLogprobs, TokenLogprobs
from tests.counts import count

STOP = 99
TOKENS_PER_TILE = 3
NUM_EXAMPLES = count("TERNVL_SCHEDULES")


@dataclass
class World:
    """A scheduler, and what its steps would have done to a device."""

    scheduler: Scheduler
    by_tile: bool
    """Whether images that begin with the same tiles share the blocks of these."""
    memory: dict[tuple[int, int], object] = field(default_factory=dict)
    encoded: set[bytes] = field(default_factory=set)
    sequences: list[Sequence] = field(default_factory=list)
    prefixes: dict[Sequence, Prefixes] = field(default_factory=dict)
    scores: dict[Sequence, PromptLogprobs] = field(default_factory=dict)
    on_disk: int = 0
    """Bits of the first byte of tiles that are on disk."""
    num_steps: int = 0
    num_held: int = 0

    def add(self, request: Request, sibling: Sequence | None = None) -> None:
        config = self.scheduler.config
        sequence = Sequence(
            request,
            arrival=len(self.sequences),
            seed=0,
            stop_ids=frozenset({STOP}),
            max_model_len=config.max_model_len,
            block_size=config.block_size,
            sibling=sibling,
            shares_tiles=self.by_tile,
        )
        self.sequences.append(sequence)
        self.prefixes[sequence] = Prefixes(sequence)
        self.scores[sequence] = ()
        self.scheduler.add(sequence)

    def step(self, *, fails: bool = False) -> None:
        """A step that fails has written to the memory, and one of its sequences is dropped."""
        missing = list(self.scheduler.next_missing_tiles())
        self.scheduler.tiles.stored = {key: memoryview(b"") for key in missing if self.on_disk & key[0]}
        schedule = self.scheduler.schedule()
        self._check_budgets(schedule)
        for chunk in schedule.chunks:
            if chunk.reuse.copied_block is not None:
                for offset in range(self.scheduler.config.block_size):
                    source = self.memory.get((chunk.reuse.copied_block, offset))
                    self.memory[chunk.new_blocks[0], offset] = source
        for work in schedule.tiles:
            assert work.key not in self.encoded, "a tile is encoded twice"
            self.encoded.add(work.key)
        assert not self.encoded & schedule.stored.keys(), "a tile is read that has features"
        self.encoded |= schedule.stored.keys()
        for chunk in schedule.chunks:
            self._compute(chunk)
        if fails:
            self.scheduler.fail(schedule)
            for chunk in schedule.chunks[:1]:
                self.scheduler.finish(chunk.sequence)
            self.encoded -= {work.key for work in schedule.tiles} | schedule.stored.keys()
        else:
            drawn = [self._draw(chunk) for chunk in schedule.sampling]
            self.scheduler.update(schedule, drawn, [self._score(chunk) for chunk in schedule.scoring])
            for chunk in schedule.sampling:
                self.scores[chunk.sequence] += chunk.sequence.take_scores()
        self.num_steps += 1
        self._clean_up()

    def abort(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self._clean_up()

    def _clean_up(self) -> None:
        self.encoded &= set(self.scheduler.tiles.keys)
        self.scheduler.check_integrity()

    def _check_budgets(self, schedule: Schedule) -> None:
        config = self.scheduler.config
        num_tokens = sum(chunk.num_tokens for chunk in schedule.chunks)
        num_tiles = len(schedule.tiles)
        assert num_tokens <= (config.max_num_batched_tokens or 0)
        assert num_tiles <= (config.max_num_batched_tiles or 0)
        assert num_tokens + num_tiles + len(schedule.stored) + len(schedule.preempted) > 0, "a step that does nothing"

    def _score(self, chunk: Chunk) -> PromptLogprobs:
        """Scores that name what they follow from, which the chunk must have computed."""
        prefixes = self.prefixes[chunk.sequence].all()
        assert chunk.start < chunk.scored.start <= chunk.scored[-1] <= chunk.start + chunk.num_own_tokens
        return tuple(TokenLogprobs(prefixes[position - 1], position) for position in chunk.scored)

    def _compute(self, chunk: Chunk) -> None:
        size = self.scheduler.config.block_size
        prefixes = self.prefixes[chunk.sequence].followed_by(chunk.draft.token_ids)

        def slot(position: int) -> tuple[int, int]:
            return chunk.block_table[position // size], position % size

        for position in range(chunk.start):
            assert self.memory[slot(position)] == prefixes[position], "a position holds another prefix"
        for image in chunk.sequence.request.prompt.images:
            for tile, key in enumerate(image.tile_keys):
                start = image.start + tile * TOKENS_PER_TILE
                if chunk.start < start + TOKENS_PER_TILE and start < chunk.stop:
                    assert key in self.encoded, "a token came before its tile"
        for position in range(chunk.start, chunk.stop):
            self.memory[slot(position)] = prefixes[position]

    def _draw(self, chunk: Chunk) -> list[int]:
        """The same prefix always draws the same token; now and then it is the end."""
        prefixes, answer = self.prefixes[chunk.sequence].followed_by(chunk.draft.token_ids), chunk.sequence.request.id
        drawn: list[int] = []
        for guess, prefix in zip((*chunk.draft.token_ids, None), prefixes[-chunk.num_sampled_rows :], strict=True):
            number = hash((prefix, answer.split(".")[-1])) % 23
            drawn.append(STOP if number == 0 else number % 4)
            self.num_held += drawn[-1] == guess
            if drawn[-1] != guess:
                break
        return drawn


class Prefixes:
    """For each position of a sequence, a hash of all that its key and value depend on."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.tiles = {
            image.start + place * TOKENS_PER_TILE: key
            for image in sequence.request.prompt.images
            for place, key in enumerate(image.tile_keys)
        }
        self.last = hash(sequence.request.cache_salt)
        self.known: list[int] = []

    def all(self) -> list[int]:
        for position in range(len(self.known), self.sequence.num_tokens):
            self.last = hash((self.last, self.sequence.token_ids[position], self.tiles.get(position)))
            self.known.append(self.last)
        return self.known

    def followed_by(self, token_ids: tuple[int, ...]) -> list[int]:
        """Those of the sequence, and of tokens that may come after it."""
        prefixes = [*self.all()]
        for token_id in token_ids:
            prefixes.append(hash((prefixes[-1], token_id, None)))
        return prefixes


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Few tokens and few images, so that prompts often begin alike; texts and images in any order."""
    ids: list[int] = []
    images: list[ImageSpan] = []
    for part in draw(st.lists(st.sampled_from(["text", "same", "image"]), min_size=1, max_size=4)):
        if part == "image" and len(ids) < 20:
            digest, num_tiles = draw(st.sampled_from([(b"A", 1), (b"B", 1), (b"C", 3), (b"D", 2), (b"E", 3)]))
            tiles = {b"A": (b"p",), b"C": (b"q", b"p", b"q"), b"E": (b"q", b"r", b"p")}.get(digest, ())
            first_tile = sum(image.num_tiles for image in images)
            images.append(ImageSpan(len(ids), num_tiles * TOKENS_PER_TILE, first_tile, num_tiles, digest * 32, tiles))
            ids += [7] * (num_tiles * TOKENS_PER_TILE)
        elif part == "same":
            ids += [1, 2, 3, 4, 5, 6]
        ids += draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    return Prompt(tuple(ids), tuple(images))


EVENTS = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 6), st.none(), st.none()),
    st.tuples(st.just("abort"), st.integers(0, 30), st.none(), st.none()),
    st.tuples(st.just("fail"), st.just(1), st.none(), st.none()),
    st.tuples(
        st.just("add"),
        st.integers(1, 4),  # answers
        prompts(),
        st.fixed_dictionaries(
            {
                "max_tokens": st.integers(0, 14),
                "priority": st.integers(0, 1),
                "salt": st.sampled_from(["", "", "s"]),
                "scored": st.sampled_from([None, None, 0]),
            }
        ),
    ),
)


@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=st.lists(EVENTS, min_size=1, max_size=25),
    extra_blocks=st.integers(0, 25),
    block_size=st.sampled_from([1, 2, 4, 5]),
    max_num_seqs=st.integers(1, 5),
    tokens=st.integers(5, 40),
    tiles=st.integers(1, 4),
    caching=st.booleans(),
    image_memory=st.integers(0, 6),
    speculation=st.sampled_from(["ngram", "ngram", "off"]),
    drafted=st.integers(1, 9),
    on_disk=st.sampled_from([0, 0, 1, 2, 255]),
    by_tile=st.booleans(),
)
def test_random_schedules(
    events: list[tuple[str, int, Any, Any]],
    extra_blocks: int,
    block_size: int,
    max_num_seqs: int,
    tokens: int,
    tiles: int,
    caching: bool,
    image_memory: int,
    speculation: str,
    drafted: int,
    on_disk: int,
    by_tile: bool,
) -> None:
    max_model_len = 60
    config = EngineConfig(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=tokens,
        max_num_batched_tiles=tiles,
        block_size=block_size,
        enable_prefix_caching=caching,
        max_queue=1000,
        speculation=speculation,
        num_speculative_tokens=drafted,
    )
    pool = BlockPool(-(-max_model_len // block_size) + extra_blocks, block_size)
    world = World(Scheduler(config, pool, TileCache(image_memory, 1)), by_tile, on_disk=on_disk)
    for kind, number, prompt, options in events:
        alive = [sequence for sequence in world.sequences if sequence.status is not Status.FINISHED]
        if kind in ("step", "fail"):
            for _ in range(number):
                if world.scheduler.has_work:
                    world.step(fails=kind == "fail")
        elif kind == "abort" and alive:
            world.abort(alive[number % len(alive)])
        elif kind == "add":
            scored = options["scored"]
            params = SamplingParams(max_tokens=options["max_tokens"] or int(scored is None), prompt_logprobs=scored)
            first = None
            for answer in range(number):
                name, sibling_of = f"{len(world.sequences)}.{answer}", first and first.id
                world.add(Request(name, prompt, params, options["priority"], options["salt"], sibling_of), first)
                first = first or world.sequences[-1]
    while world.scheduler.has_work:
        assert world.num_steps < 5_000, "the schedule does not come to an end"
        world.step()
    assert pool.num_free == pool.num_blocks
    assert world.num_held == world.scheduler.num_accepted_tokens <= world.scheduler.num_draft_tokens
    assert world.scheduler.tiles.num_held_images == 0
    for sequence in world.sequences:
        if sequence.finish_reason is not None:
            assert sequence.num_output_tokens <= (sequence.request.params.max_tokens or 0)
        if world.scores[sequence]:
            before = [None, *world.prefixes[sequence].all()]
            wanted = [each and TokenLogprobs(each, at) for at, each in enumerate(before)]
            assert list(world.scores[sequence]) == wanted[: sequence.request.prompt.num_tokens]
