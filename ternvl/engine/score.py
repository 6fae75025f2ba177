"""Scores prompts: the log probability of each of their tokens after the tokens before it.

Only requests with `prompt_logprobs` cost anything here. The logits of a long chunk would take hundreds of megabytes, so
they are computed and dropped slice by slice. The context tokens of images have no score, and no logits are computed for
them.

Shapes: T rows of the batch, C hidden size, R rows of a slice, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ternvl.engine.runner import Runner
from ternvl.engine.schedule import Chunk
from ternvl.sampling.logprobs import token_logprobs
from ternvl.sampling.sampler import NonFiniteLogitsError, check_finite
from ternvl.types import Prompt, PromptLogprobs, TokenLogprobs

_MAX_LOGITS = 2**23
"""The most logits of a slice, R times V, unless one row has more."""


class NonFiniteScoresError(ArithmeticError):
    """A chunk whose prompt cannot be scored, because logits are NaN or infinite."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__(f"the model gave logits that are not finite for the prompt of {chunk.sequence.id}")
        self.chunk = chunk


def score(chunk: Chunk, first_row: int, hidden: Tensor, runner: Runner) -> PromptLogprobs:
    """Return the log probabilities of the tokens of `chunk.scored`, given the hidden states [T, C] of the batch.

    The chunk begins at row `first_row`. Raises NonFiniteScoresError.
    """
    request, adapter = chunk.sequence.request, chunk.sequence.request.adapter
    found: dict[int, TokenLogprobs] = {}
    for positions in _slices(scorable(request.prompt, chunk.scored), runner.model.config.language.vocab_size):
        rows = [first_row + position - 1 - chunk.start for position in positions]
        spans = () if adapter is None else ((adapter, 0, len(rows)),)
        logits = runner.logits(hidden[torch.tensor(rows, device=hidden.device)], spans)
        try:
            found |= score_rows(logits, request.prompt, positions, request.params.prompt_logprobs or 0)
        except NonFiniteLogitsError as error:
            raise NonFiniteScoresError(chunk) from error
    return tuple(found.get(position) for position in chunk.scored)


def score_prompt(logits: Tensor, prompt: Prompt, num_top: int) -> PromptLogprobs:
    """Return the log probabilities of a whole prompt, given the logits [T, V] of its tokens.

    Raises NonFiniteLogitsError.
    """
    found: dict[int, TokenLogprobs] = {}
    for positions in _slices(scorable(prompt, range(1, prompt.num_tokens)), logits.shape[-1]):
        rows = torch.tensor(positions, device=logits.device) - 1
        found |= score_rows(logits[rows], prompt, positions, num_top)
    return tuple(found.get(position) for position in range(prompt.num_tokens))


def scorable(prompt: Prompt, positions: Iterable[int]) -> list[int]:
    """Return those of the positions whose tokens are predicted, which the context tokens of images are not."""
    images = {position for image in prompt.images for position in range(image.start, image.stop)}
    return [position for position in positions if position not in images]


def score_rows(logits: Tensor, prompt: Prompt, positions: Sequence[int], num_top: int) -> dict[int, TokenLogprobs]:
    """Return the log probabilities of the prompt's tokens at R positions by position, given their logits [R, V]."""
    check_finite(logits)
    return dict(
        zip(positions, token_logprobs(logits, [prompt.token_ids[each] for each in positions], num_top), strict=True)
    )


def _slices(positions: list[int], vocab_size: int) -> Iterable[list[int]]:
    size = max(1, _MAX_LOGITS // vocab_size)
    return (positions[start : start + size] for start in range(0, len(positions), size))
