"""Comparing a quantised model with the unquantised one at the positions of the unquantised model's greedy answers.

Both models run over the answers, and their distributions of the next token are compared at every position. There is no
bound on the divergence, because what counts as large depends on the model's confidence.

Shapes: P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ternvl.errors import ConfigError
from ternvl.fused.replace import caches_in_int8
from ternvl.model.attention import Attention, CausalAttention
from ternvl.model.internvl import InternVL
from ternvl.quant.cache_errors import over_int8
from ternvl.types import Progress, Prompt

_ROWS = 64
"""The number of positions whose logits are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two models over some positions. Agreements over different positions can be added."""

    positions: int = 0
    same: int = 0
    """The number of positions at which both models have the same most likely next token."""
    kl_sum: float = 0.0
    """The sum of the Kullback-Leibler divergences of the quantised from the unquantised distribution, in nats."""
    kl_max: float = 0.0
    """The largest of these divergences, in nats."""

    @property
    def top1(self) -> float:
        """The share of positions with the same most likely next token; 1 without positions."""
        return self.same / self.positions if self.positions else 1.0

    @property
    def kl_mean(self) -> float:
        """The mean divergence in nats; 0 without positions."""
        return self.kl_sum / self.positions if self.positions else 0.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.positions + other.positions,
            self.same + other.same,
            self.kl_sum + other.kl_sum,
            max(self.kl_max, other.kl_max),
        )


def measure(
    plain: InternVL,
    quantised: InternVL,
    answered: Sequence[tuple[Prompt, Sequence[int]]],
    progress: Progress | None = None,
) -> list[Agreement]:
    """Compare two models along each answer of the plain one, given as a prompt and the answer's token ids.

    `progress` is called with the numbers of compared and of all answers. Raises ConfigError for a NaN or infinity.
    """
    found: list[Agreement] = []
    for given in answered:
        found.append(compare(plain, quantised, *given))
        if progress is not None:
            progress(len(found), len(answered))
    return found


@torch.inference_mode()
def compare(plain: InternVL, quantised: InternVL, prompt: Prompt, answer: Sequence[int]) -> Agreement:
    """Compare two models at the prompt's last position and at each position of the answer.

    Raises ConfigError if a logit is NaN or infinite.
    """
    whole, total = replace(prompt, token_ids=(*prompt.token_ids, *answer)), Agreement()
    pairs = zip(*(logits_of(model, whole, prompt.num_tokens - 1) for model in (plain, quantised)), strict=True)
    for wanted, got in pairs:
        if not (wanted.isfinite().all() and got.isfinite().all()):
            raise ConfigError("The models cannot be compared, because a logit on a sample is NaN or infinite.")
        kl = kl_divergence(wanted, got)
        same = int((wanted.argmax(dim=1) == got.argmax(dim=1)).sum())
        total += Agreement(len(wanted), same, float(kl.sum()), float(kl.max()))
    return total


def kl_divergence(wanted: Tensor, got: Tensor) -> Tensor:
    """Return how far distributions are from the wanted ones, in nats: logits [P, V] twice -> [P]."""
    expected, log_probs = wanted.double().log_softmax(dim=1), got.double().log_softmax(dim=1)
    return (expected.exp() * (expected - log_probs)).sum(dim=1).clamp_min(0)


def logits_of(model: InternVL, prompt: Prompt, first: int) -> Iterator[Tensor]:
    """Logits [P, V] in float64 of the positions from `first` on, in blocks of `_ROWS`."""
    hidden = model.hidden(prompt, attention_of(model, prompt.num_tokens))[first:]
    return (model.logits(rows).double() for rows in hidden.split(_ROWS))


def attention_of(model: InternVL, num_tokens: int) -> Attention:
    """Attention as in the engine: over 8-bit keys and values if the guard allows them."""
    return over_int8(model.config.language, num_tokens) if caches_in_int8(model) else CausalAttention()
