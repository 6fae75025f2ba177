"""The engine: runs many requests through one model, step by step.

A step is `schedule -> batch -> run -> sample -> update`. It is synchronous and belongs to one thread; `service.py`
connects it to event loops and other threads.

A request's tokens depend neither on the other requests of its steps nor on chunks, cache hits and preemptions, because
every kernel computes each row separately and in a fixed order. `docs/kernels.md` lists where this holds. Plain torch is
an exception: the last bits of its results vary, because BLAS changes the order of a sum with the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ternvl.config import EngineConfig
from ternvl.engine import batch
from ternvl.engine.admission.backlog import Backlog, backlog
from ternvl.engine.cache.block_keys import with_own_images
from ternvl.engine.cache.block_pool import BlockPool
from ternvl.engine.cache.tiles import TileCache
from ternvl.engine.contention import Contention
from ternvl.engine.draw import affected, draw, failure
from ternvl.engine.request import Request, check_params, check_prompt
from ternvl.engine.runner import Runner
from ternvl.engine.schedule import Chunk, Schedule
from ternvl.engine.scheduler import Scheduler
from ternvl.engine.score import score
from ternvl.engine.sequence import Sequence as EngineSequence
from ternvl.engine.sequence import adapter_names
from ternvl.engine.settings import cache_dtype, resolve
from ternvl.engine.stats import EngineStats, SequenceState
from ternvl.engine.tiles.identity import open_disk
from ternvl.errors import EngineError, OverloadedError
from ternvl.fused.replace import caches_in_int8, is_quantized
from ternvl.model.internvl import InternVL
from ternvl.model.kv_cache import block_bytes
from ternvl.sampling.grammar import fill_masks
from ternvl.sampling.sampler import Drawn, derive_seed
from ternvl.types import FinishReason, PromptLogprobs, TokenOutput
from ternvl.workers.threads import LastingThreads


class Engine:
    """Runs requests with continuous batching over a paged KV cache. All methods except `stats` belong to one thread."""

    def __init__(self, model: InternVL, config: EngineConfig, *, stop_ids: Sequence[int]) -> None:
        """`stop_ids` end an answer unless its request ignores them. Raises ConfigError for invalid settings."""
        self.model = model.eval()
        language = model.config.language
        self.config = resolve(
            config,
            language,
            dtype=model.dtype,
            device=model.device,
            is_quantized=is_quantized(model),
            caches_in_int8=caches_in_int8(model),
        )
        """The given configuration, with all defaults resolved."""
        assert self.config.kv_cache_memory is not None
        dtype = cache_dtype(self.config, model.dtype)
        self._block_bytes = block_bytes(language, config.block_size, dtype)
        num_blocks = self.config.kv_cache_memory // self._block_bytes
        self.stop_ids = frozenset(stop_ids)
        self._contention = Contention()
        self._masking = LastingThreads(1, "masks")
        self.runner = Runner(model, num_blocks=num_blocks, block_size=config.block_size, cache_dtype=dtype)
        tile_bytes = model.config.tokens_per_tile * language.hidden_size * model.dtype.itemsize
        tiles = TileCache(config.image_cache_memory, tile_bytes)
        self.scheduler = Scheduler(self.config, BlockPool(num_blocks, config.block_size), tiles)
        self._disk = open_disk(self.config, model, tile_bytes)
        self._sequences: dict[str, EngineSequence] = {}
        self._num_added = self._num_steps = self._num_generated_tokens = 0
        self._num_prefill_tokens = self._num_encoded_tiles = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return self.scheduler.has_work

    @property
    def kv_cache_bytes(self) -> int:
        """The size of the KV cache in bytes."""
        return self.scheduler.pool.num_blocks * self._block_bytes

    @property
    def kv_cache_tokens(self) -> int:
        """The number of tokens that the KV cache can hold."""
        return self.scheduler.pool.num_blocks * self.config.block_size

    @property
    def is_full(self) -> bool:
        """Whether `add` would raise OverloadedError."""
        return self.scheduler.is_full

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises RequestError for a prompt or parameters that the model does not support, ContextLengthError for a prompt
        that is longer than the context, OverloadedError if the queue is full.
        """
        assert request.id not in self._sequences, f"request {request.id} has been added before"
        check_prompt(request.prompt, self.model.config, self.config.max_model_len)
        check_params(request.params, self.model.config.language.vocab_size, self.stop_ids)
        seed = request.params.seed
        sequence = EngineSequence(
            with_own_images(request),
            arrival=self._num_added,
            seed=derive_seed(self.config.seed, self._num_added) if seed is None else seed,
            stop_ids=self.stop_ids,
            max_model_len=self.config.max_model_len,
            block_size=self.config.block_size,
            sibling=self._sequences.get(request.sibling_of) if request.sibling_of else None,
            matcher=request.matcher(),
            shares_tiles=self.scheduler.pool.events is None,
        )
        self.runner.retain_adapter(request.adapter)
        try:
            self.scheduler.add(sequence)
        except OverloadedError:
            self.runner.release_adapter(request.adapter)
            raise
        self._sequences[request.id] = sequence
        self._num_added += 1

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks and images at once. Unknown and finished ids are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self.scheduler.finish(sequence, FinishReason.ABORT)
            self._forget(sequence)
            self.runner.drop(self.scheduler.tiles.take_dropped())

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Run one step, and return the new tokens of each request: one, or several if a draft was accepted.

        Raises EngineError if the model fails. The error names the requests that were dropped; the others continue
        without loss.
        """
        if self._disk is not None:
            self.scheduler.tiles.stored = self._disk.look_up(self.scheduler.next_missing_tiles())
        schedule = self.scheduler.schedule()
        try:
            with self._contention.step(has_tiles=bool(schedule.tiles)):
                drawn, scores = self._run(schedule)
        except BaseException as error:
            self.scheduler.fail(schedule)
            self.runner.drop(self.runner.tiles - self.scheduler.tiles.keys)
            if not isinstance(error, Exception):
                raise  # Ctrl-C, if the caller's thread runs the steps
            raise self._drop(affected(schedule, error), error) from error
        self.scheduler.update(schedule, [[each.token_id for each in tokens] for tokens in drawn], scores)
        self.runner.drop(self.scheduler.tiles.take_dropped())
        self._count(schedule)
        return [self._output(chunk, tokens) for chunk, tokens in zip(schedule.sampling, drawn, strict=True)]

    def _run(self, schedule: Schedule) -> tuple[list[list[Drawn]], list[PromptLogprobs]]:
        """Return the tokens of `schedule.sampling` and the scores of `schedule.scoring`."""
        matchers = [chunk.sequence.matcher for chunk in schedule.sampling if chunk.sequence.matcher is not None]
        masks = (
            self._masking.submit(fill_masks, matchers, self.model.config.language.vocab_size) if matchers else None
        )  # runs beside the model
        self.runner.load(schedule.stored)
        with schedule.encoding():
            self.runner.encode(schedule.tiles)
        if self._disk is not None:
            for work in schedule.tiles:
                self._disk.put(work.key, self.runner.stored_form(work.key))
        inputs = batch.build(schedule, block_size=self.config.block_size, device=self.runner.device)
        hidden = self.runner.run(inputs)
        scores = [score(chunk, row, hidden, self.runner) for chunk, row in inputs.scored]
        logits = self.runner.logits(hidden[inputs.sampled_rows], inputs.sampled_adapters)
        return draw(schedule.sampling, logits, masks.result() if masks else ()), scores

    def _count(self, schedule: Schedule) -> None:
        self._num_steps += 1
        self._num_encoded_tiles += len(schedule.tiles)
        self._num_prefill_tokens += sum(chunk.num_own_tokens for chunk in schedule.chunks if not chunk.decodes)

    def _output(self, chunk: Chunk, drawn: list[Drawn]) -> TokenOutput:
        sequence = chunk.sequence
        if sequence.finish_reason:
            self._forget(sequence)
        num_kept = sequence.num_tokens - chunk.start - chunk.num_own_tokens
        kept, left = drawn[:num_kept], drawn[num_kept:]
        self._num_generated_tokens += len(kept)
        stop = left[0] if left and sequence.finish_reason is FinishReason.STOP else None
        return TokenOutput(
            sequence.id,
            tuple(each.token_id for each in kept),
            sequence.finish_reason,
            tuple(each.logprobs for each in kept if each.logprobs is not None),
            num_cached_tokens=sequence.num_cached_tokens or 0,
            stop=(stop.token_id, stop.logprobs) if stop is not None and stop.logprobs is not None else None,
            prompt_logprobs=sequence.take_scores(),
            first_token=sequence.timing.take(),
        )

    def _forget(self, sequence: EngineSequence) -> None:
        del self._sequences[sequence.id]
        self.runner.release_adapter(sequence.request.adapter)

    def _drop(self, chunks: Iterable[Chunk], error: Exception) -> EngineError:
        ids = tuple(chunk.sequence.id for chunk in chunks)
        for request_id in ids:
            self.abort(request_id)
        return failure(error, ids)

    def stats(self) -> EngineStats:
        """Return the engine's current counters. Any thread may call it."""
        pool, tiles = self.scheduler.pool, self.scheduler.tiles
        return EngineStats(
            num_waiting=len(self.scheduler.waiting),
            num_running=len(self.scheduler.running),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_steps=self._num_steps,
            num_prompt_tokens=self.scheduler.num_prompt_tokens,
            num_prefix_hit_tokens=self.scheduler.num_prefix_hit_tokens,
            num_prefill_tokens=self._num_prefill_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_draft_tokens=self.scheduler.num_draft_tokens,
            num_accepted_tokens=self.scheduler.num_accepted_tokens,
            num_damaged_tiles=0 if self._disk is None else self._disk.num_damaged,
            **tiles.counts(),
            num_encoded_tiles=self._num_encoded_tiles,
            num_preemptions=self.scheduler.num_preemptions,
            num_drafts=self.scheduler.num_drafts,
            running_adapters=adapter_names(self.scheduler.running),
            waiting_adapters=adapter_names(self.scheduler.waiting),
        )

    def backlog(self, *, has_images: bool) -> Backlog:
        """Return the work that is before a further request. Any thread may call it."""
        return backlog(self.scheduler, has_images=has_images)

    def sequences(self) -> list[SequenceState]:
        """Return what runs and then what waits. Any thread may call it."""
        return [SequenceState.of(each) for each in (*self.scheduler.running, *self.scheduler.waiting)]

    def check_integrity(self) -> None:
        """Assert the invariants that hold between steps."""
        self.scheduler.check_integrity()
        alive = {sequence.id for sequence in self.scheduler.waiting + self.scheduler.running}
        assert alive == self._sequences.keys()
        assert self.runner.tiles <= self.scheduler.tiles.keys
