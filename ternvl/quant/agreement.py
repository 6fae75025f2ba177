"""How near a quantised model is to the unquantised one, at the positions that matter: those of its own greedy answers.

The unquantised model answers; both are then given its answers, token by token, and their next tokens are compared.

Shapes: P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ternvl.errors import ConfigError
from ternvl.fused.replace import caches_in_int8
from ternvl.model.attention import Attention, CausalAttention
from ternvl.model.internvl import InternVL
from ternvl.quant.cache_errors import over_int8
from ternvl.types import Prompt

_ROWS = 64
"""Positions whose logits are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over some positions; agreements over others can be added."""

    positions: int = 0
    same: int = 0
    """Positions at which the likeliest next token is the same."""
    kl_sum: float = 0.0
    """Of the divergences of Kullback and Leibler, quantised from unquantised, in nats."""
    kl_max: float = 0.0

    @property
    def top1(self) -> float:
        return self.same / self.positions if self.positions else 1.0

    @property
    def kl_mean(self) -> float:
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
    progress: Callable[[int, int], None] | None = None,
) -> list[Agreement]:
    """How far two models agree along each answer of the plain one, given as a prompt and the answer's token ids.

    `progress` is called with the number of answers compared so far and the number of all answers. Raises ConfigError
    if a logit is NaN or infinite.
    """
    found: list[Agreement] = []
    for prompt, answer in answered:
        found.append(compare(plain, quantised, prompt, answer))
        if progress is not None:
            progress(len(found), len(answered))
    return found


@torch.inference_mode()
def compare(plain: InternVL, quantised: InternVL, prompt: Prompt, answer: Sequence[int]) -> Agreement:
    """Over the prompt's last position and each of the answer's. Raises ConfigError for logits that are no numbers."""
    whole = replace(prompt, token_ids=(*prompt.token_ids, *answer))
    total = Agreement()
    for wanted, got in zip(
        *(_logits(model, whole, prompt.num_tokens - 1) for model in (plain, quantised)), strict=True
    ):
        if not (wanted.isfinite().all() and got.isfinite().all()):
            raise ConfigError("The model gives logits that are no numbers on a sample: it cannot be compared.")
        expected, log_probs = wanted.log_softmax(dim=1), got.log_softmax(dim=1)
        kl = (expected.exp() * (expected - log_probs)).sum(dim=1).clamp_min(0)
        same = int((wanted.argmax(dim=1) == got.argmax(dim=1)).sum())
        total += Agreement(len(wanted), same, float(kl.sum()), float(kl.max()))
    return total


def _logits(model: InternVL, prompt: Prompt, first: int) -> Iterator[Tensor]:
    """Logits [P, V] in float64 of the positions from `first` on, some at a time."""
    hidden = model.hidden(prompt, _attention(model, prompt.num_tokens))[first:]
    return (model.logits(rows).double() for rows in hidden.split(_ROWS))


def _attention(model: InternVL, num_tokens: int) -> Attention:
    """As the engine has it: over keys and values of 8 bits where the guard lets it."""
    return over_int8(model.config.language, num_tokens) if caches_in_int8(model) else CausalAttention()
