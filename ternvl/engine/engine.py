"""The step loop: many requests through one model, each as if it were alone.

A step is `schedule -> batch -> run -> sample -> update`. It is synchronous and belongs to one thread; `service.py`
brings it to asyncio.

Scheduling, caching and sampling are exact whatever the company. The matrix products are not yet: BLAS sums in another
order for another number of rows, so logits may differ in their last bits, and a near tie may fall the other way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ternvl.config import EngineConfig
from ternvl.engine import batch, memory
from ternvl.engine.block_pool import BlockPool
from ternvl.engine.runner import Runner
from ternvl.engine.scheduler import Chunk, Schedule, Scheduler
from ternvl.engine.sequence import Sequence as EngineSequence
from ternvl.engine.validate import check_config, check_prompt
from ternvl.errors import EngineError
from ternvl.model.internvl import InternVL
from ternvl.sampling.sampler import Draw, Drawn, NonFiniteLogitsError, derive_seed, sample
from ternvl.types import FinishReason, Request, TokenOutput

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at one moment; counts of tokens, steps and preemptions are since its start."""

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0


class Engine:
    """Continuous batching over a paged KV cache."""

    def __init__(self, model: InternVL, config: EngineConfig, *, stop_ids: Sequence[int]) -> None:
        """`stop_ids` end an answer unless it ignores them. Raises ConfigError for settings that cannot be."""
        check_config(config)
        language = model.config.language
        longest = min(config.max_model_len, language.max_position_embeddings)
        num_blocks = memory.num_blocks(config, language, longest, dtype=model.dtype, device=model.device)
        self.model = model.eval()
        self.config = replace(config, max_model_len=min(longest, num_blocks * config.block_size))
        """As given, but `max_model_len` is within what the model and the KV cache hold."""
        if self.config.max_model_len < longest:
            logger.warning("The KV cache holds only %d tokens: contexts are limited to it.", self.config.max_model_len)
        self.stop_ids = frozenset(stop_ids)
        self.runner = Runner(model, num_blocks=num_blocks, block_size=config.block_size)
        self.scheduler = Scheduler(self.config, BlockPool(num_blocks, config.block_size))
        self._sequences: dict[str, EngineSequence] = {}
        self._num_added = self._num_steps = self._num_prompt_tokens = self._num_generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def is_full(self) -> bool:
        """Whether `add` would raise OverloadedError."""
        return self.scheduler.is_full

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError for a prompt the model cannot take, ContextLengthError for one that is
        too long for the context, OverloadedError where the queue is full."""
        assert request.id not in self._sequences, f"request {request.id} is here already"
        check_prompt(request.prompt, self.model.config, self.config.max_model_len)
        seed = request.params.seed
        sequence = EngineSequence(
            request,
            arrival=self._num_added,
            seed=derive_seed(self.config.seed, self._num_added) if seed is None else seed,
            stop_ids=self.stop_ids,
            max_model_len=self.config.max_model_len,
        )
        self.scheduler.add(sequence)
        self._sequences[request.id] = sequence
        self._num_added += 1
        self._num_prompt_tokens += request.prompt.num_tokens

    def abort(self, request_id: str) -> None:
        """Drop a request and free all it holds, at once. One that is unknown or has ended is none of our business."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self.scheduler.finish(sequence, FinishReason.ABORT)
            self._forget(sequence)

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Run one step: at most one new token a request. Raises EngineError, which names the requests that were
        dropped, where the model fails; the others lose nothing."""
        schedule = self.scheduler.schedule()
        try:
            drawn = self._run(schedule)
        except Exception as error:
            raise self._drop(_affected(schedule, error), error) from error
        self.scheduler.update(schedule, [each.token_id for each in drawn])
        self._num_steps += 1
        return [self._output(chunk.sequence, each) for chunk, each in zip(schedule.sampling, drawn, strict=True)]

    def _run(self, schedule: Schedule) -> list[Drawn]:
        self.runner.encode(schedule)
        inputs = batch.build(schedule, block_size=self.config.block_size, device=self.runner.device)
        logits = self.runner.run(inputs)
        return sample(logits, [_draw(chunk.sequence) for chunk in schedule.sampling])

    def _output(self, sequence: EngineSequence, drawn: Drawn) -> TokenOutput:
        if sequence.finish_reason:
            self._forget(sequence)
        if sequence.finish_reason is FinishReason.STOP:
            return TokenOutput(sequence.id, (), FinishReason.STOP)
        self._num_generated_tokens += 1
        logprobs = () if drawn.logprobs is None else (drawn.logprobs,)
        return TokenOutput(sequence.id, (drawn.token_id,), sequence.finish_reason, logprobs)

    def _drop(self, chunks: Iterable[Chunk], error: Exception) -> EngineError:
        ids = tuple(chunk.sequence.id for chunk in chunks)
        logger.error("A step failed; %d requests are dropped.", len(ids), exc_info=error)
        for request_id in ids:
            self.abort(request_id)
        return EngineError("The engine failed while it worked on this request.", request_ids=ids)

    def _forget(self, sequence: EngineSequence) -> None:
        del self._sequences[sequence.id]
        self.runner.release(sequence.id)

    def stats(self) -> EngineStats:
        """The engine now; may be asked from any thread."""
        return EngineStats(
            num_waiting=len(self.scheduler.waiting),
            num_running=len(self.scheduler.running),
            num_blocks=self.scheduler.pool.num_blocks,
            num_free_blocks=self.scheduler.pool.num_free,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=self.scheduler.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Assert what holds between any two steps."""
        self.scheduler.check_integrity()
        alive = {sequence.id for sequence in self.scheduler.waiting + self.scheduler.running}
        assert alive == self._sequences.keys()
        assert self.runner.request_ids <= alive


def _draw(sequence: EngineSequence) -> Draw:
    request = sequence.request
    return Draw(request.params, sequence.seed, request.prompt.token_ids, sequence.output_ids, sequence.stop_ids)


def _affected(schedule: Schedule, error: Exception) -> list[Chunk]:
    """Whom a failure concerns: those whose logits are broken, or all of the step."""
    if isinstance(error, NonFiniteLogitsError):
        sampling = schedule.sampling
        return [sampling[row] for row in error.rows]
    return list(schedule.chunks)
