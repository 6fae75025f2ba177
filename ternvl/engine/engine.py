"""The step loop: many requests through one model, each as if it were alone.

A step is `schedule -> batch -> run -> sample -> update`. It is synchronous and belongs to one thread; `service.py`
brings it to asyncio.

Whatever the company, the chunks, the cache hits and the preemptions, a request's tokens are the same: every kernel
computes a row by itself, in one order. (`docs/kernels.md` says where that holds; plain torch is exact to the last bits
only, because BLAS sums in another order for another number of rows.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ternvl.config import EngineConfig
from ternvl.engine import batch
from ternvl.engine.block_keys import with_own_images
from ternvl.engine.block_pool import BlockPool
from ternvl.engine.draw import draw
from ternvl.engine.image_cache import ImageCache
from ternvl.engine.request import Request, check_params, check_prompt
from ternvl.engine.runner import Runner
from ternvl.engine.schedule import Chunk, Schedule
from ternvl.engine.scheduler import Scheduler
from ternvl.engine.sequence import Sequence as EngineSequence
from ternvl.engine.settings import cache_dtype, resolve
from ternvl.engine.stats import EngineStats
from ternvl.errors import EngineError, OverloadedError, RequestError
from ternvl.fused.replace import caches_in_int8, is_quantized
from ternvl.model.internvl import InternVL
from ternvl.model.kv_cache import block_bytes
from ternvl.sampling.grammar import GrammarError, fill_masks
from ternvl.sampling.sampler import Drawn, NonFiniteLogitsError, derive_seed
from ternvl.types import FinishReason, TokenOutput

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over a paged KV cache."""

    def __init__(
        self,
        model: InternVL,
        config: EngineConfig,
        *,
        stop_ids: Sequence[int],
    ) -> None:
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
        """As given, with every default decided."""
        assert self.config.kv_cache_memory is not None
        dtype = cache_dtype(self.config, model.dtype)
        self._block_bytes = block_bytes(language, config.block_size, dtype)
        num_blocks = self.config.kv_cache_memory // self._block_bytes
        self.stop_ids = frozenset(stop_ids)
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self.runner = Runner(model, num_blocks=num_blocks, block_size=config.block_size, cache_dtype=dtype)
        tile_bytes = model.config.tokens_per_tile * language.hidden_size * model.dtype.itemsize
        images = ImageCache(config.image_cache_memory, tile_bytes)
        self.scheduler = Scheduler(self.config, BlockPool(num_blocks, config.block_size), images)
        self._sequences: dict[str, EngineSequence] = {}
        self._num_added = self._num_steps = self._num_generated_tokens = 0
        self._num_prefill_tokens = self._num_encoded_tiles = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def kv_cache_bytes(self) -> int:
        """Memory of the KV cache."""
        return self.scheduler.pool.num_blocks * self._block_bytes

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.scheduler.pool.num_blocks * self.config.block_size

    @property
    def is_full(self) -> bool:
        """Whether `add` would raise OverloadedError."""
        return self.scheduler.is_full

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises RequestError for a prompt or parameters that the model cannot take, ContextLengthError for a prompt that
        is longer than the context, OverloadedError if the queue is full.
        """
        assert request.id not in self._sequences, f"request {request.id} is here already"
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
        """Drop a request and free all it holds, at once. One that is unknown or has ended is none of our business."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self.scheduler.finish(sequence, FinishReason.ABORT)
            self._forget(sequence)
            self.runner.retain(self.scheduler.images.digests)

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Run one step: at most one new token a request, or several where a draft held. Raises EngineError, which names
        the requests that were dropped, where the model fails; the others lose nothing."""
        schedule = self.scheduler.schedule()
        try:
            drawn = self._run(schedule)
        except Exception as error:
            self.scheduler.fail(schedule)
            raise self._drop(_affected(schedule, error), error) from error
        self.scheduler.update(schedule, [[each.token_id for each in tokens] for tokens in drawn])
        self.runner.retain(self.scheduler.images.digests)
        self._count(schedule)
        return [self._output(chunk, tokens) for chunk, tokens in zip(schedule.sampling, drawn, strict=True)]

    def _run(self, schedule: Schedule) -> list[list[Drawn]]:
        matchers = [chunk.sequence.matcher for chunk in schedule.sampling if chunk.sequence.matcher is not None]
        masks = (
            self._masking.submit(fill_masks, matchers, self.model.config.language.vocab_size) if matchers else None
        )  # while the model runs
        self.runner.encode(schedule.tiles)
        inputs = batch.build(schedule, block_size=self.config.block_size, device=self.runner.device)
        logits = self.runner.run(inputs)
        return draw(schedule.sampling, logits, masks.result() if masks else ())

    def _count(self, schedule: Schedule) -> None:
        self._num_steps += 1
        self._num_encoded_tiles += sum(work.count for work in schedule.tiles)
        self._num_prefill_tokens += sum(chunk.num_own_tokens for chunk in schedule.chunks if not _decodes(chunk))

    def _output(self, chunk: Chunk, drawn: list[Drawn]) -> TokenOutput:
        sequence = chunk.sequence
        if sequence.finish_reason:
            self._forget(sequence)
        kept = drawn[: sequence.num_tokens - chunk.start - chunk.num_own_tokens]
        self._num_generated_tokens += len(kept)
        logprobs = tuple(each.logprobs for each in kept if each.logprobs is not None)
        token_ids = tuple(each.token_id for each in kept)
        return TokenOutput(
            sequence.id, token_ids, sequence.finish_reason, logprobs, num_cached_tokens=sequence.num_cached_tokens or 0
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
        """The engine now; may be asked from any thread."""
        pool, images = self.scheduler.pool, self.scheduler.images
        return EngineStats(
            num_waiting=len(self.scheduler.waiting),
            num_running=len(self.scheduler.running),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_held_images=images.num_held,
            num_steps=self._num_steps,
            num_prompt_tokens=self.scheduler.num_prompt_tokens,
            num_prefix_hit_tokens=self.scheduler.num_prefix_hit_tokens,
            num_prefill_tokens=self._num_prefill_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_draft_tokens=self.scheduler.num_draft_tokens,
            num_accepted_tokens=self.scheduler.num_accepted_tokens,
            num_image_lookups=images.num_lookups,
            num_image_hits=images.num_hits,
            num_encoded_tiles=self._num_encoded_tiles,
            num_preemptions=self.scheduler.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Assert what holds between any two steps."""
        self.scheduler.check_integrity()
        alive = {sequence.id for sequence in self.scheduler.waiting + self.scheduler.running}
        assert alive == self._sequences.keys()
        assert self.runner.image_digests <= self.scheduler.images.digests


def failure(error: Exception, request_ids: tuple[str, ...]) -> EngineError:
    """What those learn whose requests are dropped. Only what is not their own grammar's doing is logged as an error."""
    if isinstance(error, GrammarError):
        cause = RequestError(str(error), code="grammar_limit")
        return EngineError(str(error), request_ids=request_ids, cause=cause)
    logger.error("A step failed; %d requests are dropped.", len(request_ids), exc_info=error)
    return EngineError("The engine failed while it worked on this request.", request_ids=request_ids)


def _decodes(chunk: Chunk) -> bool:
    """Whether a chunk computes nothing but the token that was drawn last."""
    return chunk.num_own_tokens == 1 and chunk.start >= chunk.sequence.request.prompt.num_tokens


def _affected(schedule: Schedule, error: Exception) -> list[Chunk]:
    """Whom a failure concerns: those whose logits or grammars are broken, or all of the step."""
    if isinstance(error, NonFiniteLogitsError):
        return [schedule.sampling[row] for row in error.rows]
    if isinstance(error, GrammarError):
        constrained = [chunk for chunk in schedule.sampling if chunk.sequence.matcher]
        return [constrained[row] for row in error.rows]
    return list(schedule.chunks)
