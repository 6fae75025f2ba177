"""Logits of a step to tokens: of each chunk as many as its draft holds for, and one more.

A chunk's rows are drawn one after the other, each as if it were the only one, and the next only where the draft named
the very token that was drawn. So a wrong guess costs the sampler nothing, and changes nothing.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ternvl.engine.schedule import Chunk
from ternvl.sampling.grammar import GrammarError, Matcher, fill_masks
from ternvl.sampling.sampler import Draw, Drawn, NonFiniteLogitsError, sample


def draw(chunks: Sequence[Chunk], logits: Tensor, masks: Iterable[Tensor]) -> list[list[Drawn]]:
    """Tokens of the chunks of `Schedule.sampling`, from the logits [R, V] of all their rows.

    `masks` are of those first rows whose sequences have a grammar. Raises NonFiniteLogitsError, which names chunks.
    """
    states = [_Drawing(chunk, row) for chunk, row in zip(chunks, _first_rows(chunks), strict=True)]
    _draw_row(states, logits, masks)
    alive = [state for state in states if state.goes_on()]
    while alive:
        try:
            masks = fill_masks([state.ahead for state in alive if state.ahead], logits.shape[-1])
            _draw_row(alive, logits, masks)
        except (GrammarError, NonFiniteLogitsError):
            break  # what is drawn stands; the next step comes to the same row as its first, and says whose it is
        alive = [state for state in alive if state.goes_on()]
    return [state.drawn for state in states]


def _first_rows(chunks: Sequence[Chunk]) -> list[int]:
    return [0, *accumulate(chunk.num_sampled_rows for chunk in chunks)][:-1]


class _Drawing:
    """One chunk's tokens so far."""

    def __init__(self, chunk: Chunk, first_row: int) -> None:
        self.chunk = chunk
        self.drawn: list[Drawn] = []
        self.ahead: Matcher | None = None
        """Follows the grammar through the draft. The sequence's own moves only once the step has run."""
        self._first_row = first_row

    @property
    def row(self) -> int:
        """Of the logits, that of the next token."""
        return self._first_row + len(self.drawn)

    def wish(self, allowed: Tensor | None) -> Draw:
        """How the next token is drawn."""
        sequence = self.chunk.sequence
        request = sequence.request
        before = sequence.output_ids + [each.token_id for each in self.drawn]
        return Draw(request.params, sequence.seed, request.prompt.token_ids, before, sequence.stop_ids, allowed)

    def goes_on(self) -> bool:
        """Whether the draft held, and so has another row to draw from."""
        draft, token_id = self.chunk.draft.token_ids, self.drawn[-1].token_id
        if len(self.drawn) > len(draft) or token_id != draft[len(self.drawn) - 1]:
            return False
        matcher = self.chunk.sequence.matcher
        if matcher is None:
            return True
        self.ahead = self.ahead or matcher.fork()
        return not self.ahead.accept(token_id)


def _draw_row(states: Sequence[_Drawing], logits: Tensor, masks: Iterable[Tensor]) -> None:
    """Draw each one's next token."""
    rows = [state.row for state in states]
    if len(rows) < len(logits):
        logits = logits[torch.tensor(rows, device=logits.device)]
    mask = iter(masks)
    wishes = [state.wish(next(mask) if state.chunk.sequence.matcher else None) for state in states]
    for state, drawn in zip(states, sample(logits, wishes), strict=True):
        state.drawn.append(drawn)
