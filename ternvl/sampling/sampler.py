"""Draws tokens from logits, for many requests at once.

First, tokens that the grammar forbids and tokens outside of `allowed_token_ids` are removed, so that the others share
all probability. Then the order is that of vLLM's documentation: biases; repetition, presence and frequency penalties;
the ban on stop tokens below `min_tokens`. The reported log probabilities are computed at this point. Last come
temperature, top_k, top_p and min_p.

A drawn token depends only on the row's logits, its seed and its position, never on other rows: each draw inverts the
row's cumulative distribution at a number hashed from seed and position. There is no generator with a state.

Shapes: S rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ternvl.kernels.largest import largest
from ternvl.params import SamplingParams
from ternvl.sampling import processors
from ternvl.sampling.logprobs import token_logprobs
from ternvl.types import TokenLogprobs

_DEFAULTS = SamplingParams()


@dataclass(frozen=True, slots=True)
class Draw:
    """A request to draw one token: the parameters of one row, and the tokens before it."""

    params: SamplingParams
    seed: int
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    """Tokens of the answer so far. Their number is the position of the draw."""
    stop_ids: frozenset[int]
    """Tokens that are banned before the answer has `params.min_tokens` tokens, unless nothing else is allowed."""
    allowed: Tensor | None = None
    """[ceil(V / 32)] int32: the bitmask of the row's grammar; None without one."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The token drawn for one row, and its log probabilities if they were requested."""

    token_id: int
    logprobs: TokenLogprobs | None


class NonFiniteLogitsError(ArithmeticError):
    """Rows whose logits are NaN or infinite, so that no token can be drawn."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"the model gave logits that are not finite (rows {rows})")
        self.rows = rows


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """Draw a token for each row of logits [S, V] float32. Raises NonFiniteLogitsError, which names the rows."""
    original = logits
    values, token_ids = largest(logits)
    _check_finite(values)
    logits = _add_biases(_keep_allowed(_apply_grammars(logits, draws), draws), draws)
    logits = _ban_stops(_penalise(logits, draws), draws)
    if logits is not original:
        token_ids = largest(logits)[1]
    random = [row for row, draw in enumerate(draws) if draw.params.temperature > 0]
    if random:
        chosen = torch.tensor(random, device=logits.device)
        token_ids[chosen] = _draw(logits[chosen], [draws[row] for row in random])
    ids = token_ids.tolist()
    return [Drawn(ids[row], _logprobs(logits[row], ids[row], draw.params)) for row, draw in enumerate(draws)]


def check_finite(logits: Tensor) -> None:
    """Raise NonFiniteLogitsError, which names the rows, if any of logits [R, V] is NaN or positive infinity."""
    _check_finite(largest(logits)[0])


def _check_finite(values: Tensor) -> None:
    """Check the largest logit of each row [R]."""
    if broken := [row for row, value in enumerate(values.tolist()) if not math.isfinite(value)]:
        raise NonFiniteLogitsError(broken)


def uniform(seed: int, position: int) -> float:
    """Return a number in (0, 1) for a position of a seeded sequence: a hash of both."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest) >> 13) + 0.5) / 2**51


def derive_seed(base: int, number: int) -> int:
    """Return the seed of request `number`, for requests without a seed of their own."""
    return int.from_bytes(hashlib.blake2b(f"{base}/{number}".encode(), digest_size=8).digest())


def _apply_grammars(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [row for row, draw in enumerate(draws) if draw.allowed is not None]
    if not rows:
        return logits
    bitmasks = torch.stack([draws[row].allowed for row in rows])  # type: ignore[misc]
    index = torch.tensor(rows, device=logits.device)
    return logits.index_copy(0, index, processors.apply_bitmask(logits[index], bitmasks))


def _keep_allowed(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [row for row, draw in enumerate(draws) if draw.params.allowed_token_ids]
    if not rows:
        return logits
    index = torch.tensor(rows, device=logits.device)
    allowed = torch.zeros(len(rows), logits.shape[-1], dtype=torch.bool, device=logits.device)
    for mask, row in zip(allowed, rows, strict=True):
        mask[torch.tensor(draws[row].params.allowed_token_ids, device=logits.device)] = True
    return logits.index_copy(0, index, processors.apply_allowed(logits[index], allowed))


def _add_biases(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [row for row, draw in enumerate(draws) if draw.params.logit_bias]
    if not rows:
        return logits
    index = torch.tensor(rows, device=logits.device)
    bias = logits.new_zeros(len(rows), logits.shape[-1])
    for values, row in zip(bias, rows, strict=True):
        token_ids, amounts = zip(*draws[row].params.logit_bias, strict=True)
        values[torch.tensor(token_ids, device=logits.device)] = logits.new_tensor(amounts)
    return logits.index_copy(0, index, processors.apply_bias(logits[index], bias))


def _penalise(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [row for row, draw in enumerate(draws) if _has_penalty(draw.params)]
    if not rows:
        return logits
    params = [draws[row].params for row in rows]
    outputs = _counts([draws[row].output_ids for row in rows], logits)
    prompts = _counts([draws[row].prompt_ids for row in rows], logits)
    index = torch.tensor(rows, device=logits.device)

    def values(of: Callable[[SamplingParams], float]) -> Tensor:
        return logits.new_tensor([of(row) for row in params])

    changed = processors.apply_repetition_penalty(
        logits[index], values(lambda row: row.repetition_penalty), (prompts + outputs) > 0
    )
    changed = processors.apply_presence_penalty(changed, values(lambda row: row.presence_penalty), outputs)
    changed = processors.apply_frequency_penalty(changed, values(lambda row: row.frequency_penalty), outputs)
    return logits.index_copy(0, index, changed)


def _has_penalty(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)


def _counts(ids: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """Return how often each token occurs in each row: [R, V] float32."""
    counts = logits.new_zeros(len(ids), logits.shape[-1])
    for row, tokens in zip(counts, ids, strict=True):
        index = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
        row.index_add_(0, index, logits.new_ones(len(index)))
    return counts


def _ban_stops(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    banned = [
        (row, token_id)
        for row, draw in enumerate(draws)
        if len(draw.output_ids) < draw.params.min_tokens
        for token_id in draw.stop_ids
        if token_id < logits.shape[-1]
    ]
    if not banned:
        return logits
    rows, token_ids = torch.tensor(banned, device=logits.device).T
    left = logits.index_put((rows, token_ids), logits.new_tensor(-torch.inf))
    return torch.where(
        left.amax(dim=-1, keepdim=True) > -torch.inf, left, logits
    )  # a grammar may allow nothing but the end


def _draw(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Return tokens [R] of rows with a temperature above 0."""
    params = [draw.params for draw in draws]
    logits = processors.apply_temperature(logits, logits.new_tensor([row.temperature for row in params]))
    for name, apply in processors.TRUNCATIONS.items():
        default = getattr(_DEFAULTS, name)
        values = [getattr(row, name) for row in params]
        logits = _apply_where_given(apply, logits, [None if value == default else value for value in values])
    cumulative = logits.softmax(dim=-1).double().cumsum(dim=-1)  # [R, V]
    points = [uniform(draw.seed, len(draw.output_ids)) for draw in draws]
    heights = torch.tensor(points, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    # The first token whose cumulative sum exceeds the height, so its own probability is above 0.
    return torch.searchsorted(cumulative, heights, right=True).squeeze(-1)


def _apply_where_given(
    apply: Callable[[Tensor, Tensor], Tensor], logits: Tensor, values: Sequence[float | None]
) -> Tensor:
    """Apply a processor to the rows that have a value for it."""
    rows = [row for row, value in enumerate(values) if value is not None]
    if not rows:
        return logits
    index = torch.tensor(rows, device=logits.device)
    changed = apply(logits[index], torch.tensor([values[row] for row in rows], device=logits.device))
    return logits.index_copy(0, index, changed)


def _logprobs(logits: Tensor, token_id: int, params: SamplingParams) -> TokenLogprobs | None:
    """Return the log probabilities of one row [V], before temperature and truncation."""
    if params.logprobs is None:
        return None
    return token_logprobs(logits[None], [token_id], params.logprobs)[0]
