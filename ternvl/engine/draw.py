"""Draws the tokens of a step: for each chunk, the accepted tokens of its draft and one more.

The rows of a chunk are drawn one after another, each as if it were the only one. The next row is drawn only if the
draft has guessed the token that was just drawn. So a wrong guess neither costs the sampler time nor changes an answer.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ternvl.engine.schedule import Chunk, Schedule
from ternvl.engine.score import NonFiniteScoresError
from ternvl.errors import EngineError, RequestError, UnavailableError, lacks_memory
from ternvl.sampling.grammar import GrammarError, Matcher, fill_masks
from ternvl.sampling.sampler import Draw, Drawn, NonFiniteLogitsError, sample

logger = logging.getLogger(__name__)


def draw(chunks: Sequence[Chunk], logits: Tensor, masks: Iterable[Tensor]) -> list[list[Drawn]]:
    """Draw the tokens of the chunks of `Schedule.sampling`, from the logits [R, V] of all their rows.

    `masks` has the bitmask of the first row of each chunk with a grammar. Raises NonFiniteLogitsError, whose rows are
    indices of `chunks`.
    """
    states = [_ChunkDraw(chunk, row) for chunk, row in zip(chunks, _first_rows(chunks), strict=True)]
    _draw_row(states, logits, masks)
    continuing = [state for state in states if state.continues()]
    while continuing:
        try:
            masks = fill_masks([state.lookahead for state in continuing if state.lookahead], logits.shape[-1])
            _draw_row(continuing, logits, masks)
        except (GrammarError, NonFiniteLogitsError):
            break  # the drawn tokens count; the next step begins with this row, and its error names the chunk
        continuing = [state for state in continuing if state.continues()]
    return [state.drawn for state in states]


def _first_rows(chunks: Sequence[Chunk]) -> list[int]:
    return [0, *accumulate(chunk.num_sampled_rows for chunk in chunks)][:-1]


class _ChunkDraw:
    """The tokens of one chunk that are drawn so far."""

    def __init__(self, chunk: Chunk, first_row: int) -> None:
        self.chunk = chunk
        self.drawn: list[Drawn] = []
        self.lookahead: Matcher | None = None
        """Follows the grammar through the draft. The sequence's own matcher advances only after the step has run."""
        self._first_row = first_row

    @property
    def row(self) -> int:
        """Row of the logits for the next token."""
        return self._first_row + len(self.drawn)

    def draw_request(self, allowed: Tensor | None) -> Draw:
        """Return the request for the next token."""
        sequence = self.chunk.sequence
        request = sequence.request
        before = sequence.output_ids + [each.token_id for each in self.drawn]
        return Draw(request.params, sequence.seed, request.prompt.token_ids, before, sequence.stop_ids, allowed)

    def continues(self) -> bool:
        """Whether the draft has guessed the last token, so that there is another row to draw from."""
        draft, token_id = self.chunk.draft.token_ids, self.drawn[-1].token_id
        if len(self.drawn) > len(draft) or token_id != draft[len(self.drawn) - 1]:
            return False
        matcher = self.chunk.sequence.matcher
        if matcher is None:
            return True
        self.lookahead = self.lookahead or matcher.fork()
        return not self.lookahead.accept(token_id)


def _draw_row(states: Sequence[_ChunkDraw], logits: Tensor, masks: Iterable[Tensor]) -> None:
    """Draw the next token of each chunk."""
    rows = [state.row for state in states]
    if len(rows) < len(logits):
        logits = logits[torch.tensor(rows, device=logits.device)]
    mask = iter(masks)
    requests = [state.draw_request(next(mask) if state.chunk.sequence.matcher else None) for state in states]
    for state, drawn in zip(states, sample(logits, requests), strict=True):
        state.drawn.append(drawn)


def affected(schedule: Schedule, error: BaseException) -> list[Chunk]:
    """Return the chunks that a step's failure concerns: those with broken logits or grammars, otherwise all of them."""
    if isinstance(error, NonFiniteScoresError):
        return [error.chunk]
    if isinstance(error, NonFiniteLogitsError):
        return [schedule.sampling[row] for row in error.rows]
    if isinstance(error, GrammarError):
        constrained = [chunk for chunk in schedule.sampling if chunk.sequence.matcher]
        return [constrained[row] for row in error.rows]
    return list(schedule.chunks)


def failure(error: Exception, request_ids: tuple[str, ...]) -> EngineError:
    """Return the error of requests that are dropped because of `error`, which is logged unless a grammar caused it.

    Without enough memory they are refused; a client may send them again.
    """
    if isinstance(error, GrammarError):
        cause = RequestError(str(error), code="grammar_limit")
        return EngineError(str(error), request_ids=request_ids, cause=cause)
    if lacks_memory(error):
        logger.error("A step had too little memory; %d requests are dropped.", len(request_ids))
        refusal = UnavailableError("The engine had too little memory for this request.")
        return EngineError(str(refusal), request_ids=request_ids, cause=refusal)
    logger.error("A step failed; %d requests are dropped.", len(request_ids), exc_info=error)
    return EngineError("The engine failed while it worked on this request.", request_ids=request_ids)
