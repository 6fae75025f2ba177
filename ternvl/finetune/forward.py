"""Runs the model with gradients over several conversations at once, and computes the loss on their answers.

The conversations are concatenated to one flat run of tokens, a pack; each attends only to itself.

Shapes: T tokens of a pack, S conversations, R tokens that are learned, H query heads, K key-value heads, D head size,
C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ternvl.finetune.encode import Example
from ternvl.model.attention import CausalAttention
from ternvl.model.internvl import InternVL

_CHUNK = 2**25
"""Number of logits that are in memory at the same time, about: at V = 151,674 those of 221 tokens."""


class PackedAttention:
    """An `Attention` that is causal within each conversation of a pack."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)
        self._causal = CausalAttention()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q [T, H, D], k and v [T, K, D] -> [T, H, D]."""
        parts = zip(*(x.split(self._lengths) for x in (q, k, v)), strict=True)
        return torch.cat([self._causal(layer, *part) for part in parts])


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over the learned tokens, so that losses of packs of different sizes can be added."""

    total: Tensor
    """Cross-entropy, natural logarithm; [] float32."""
    num_tokens: int
    num_right: int
    """Number of tokens to which the model gives the highest probability, given all tokens before them."""


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group indices of conversations into packs of at most `limit` tokens, the longest first.

    A conversation longer than `limit` has a pack of its own.
    """
    runs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        chosen = next((i for i, left in enumerate(room) if lengths[index] <= left), len(runs))
        if chosen == len(runs):
            runs.append([])
            room.append(limit)
        runs[chosen].append(index)
        room[chosen] -= lengths[index]
    return runs


def answer_loss(model: InternVL, examples: Sequence[Example], features: Sequence[Tensor | None]) -> Loss:
    """Return the loss of a pack. `features[i]` is [image tokens, C] for example i, or None if it has no images."""
    device = model.device
    lengths = [example.num_tokens for example in examples]
    ids = torch.cat([example.token_ids for example in examples]).to(device)  # [T]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    hidden = model.decode(_embed(model, ids, examples, features), positions, PackedAttention(lengths))  # [T, C]
    is_target = torch.cat([example.is_target for example in examples]).to(device)
    learned = is_target.nonzero().squeeze(1)  # [R]; the first token of a conversation is never learned
    return _loss(model, hidden[learned - 1], ids[learned])


def _embed(model: InternVL, ids: Tensor, examples: Sequence[Example], features: Sequence[Tensor | None]) -> Tensor:
    """Return the embeddings [T, C], with the image features at the context tokens."""
    embeddings = model.embed(ids)
    rows: list[Tensor] = []
    begin = 0
    for example in examples:
        for start, count in zip(example.image_starts, example.image_tokens, strict=True):
            rows.append(torch.arange(begin + start, begin + start + count, device=ids.device))
        begin += example.num_tokens
    if not rows:
        return embeddings
    image_features = torch.cat([each for each in features if each is not None])
    return embeddings.index_copy(0, torch.cat(rows), image_features.to(embeddings.dtype))


def _loss(model: InternVL, hidden: Tensor, targets: Tensor) -> Loss:
    """hidden [R, C], targets [R]. With a full-size vocabulary, the logits of a whole pack would take gigabytes, so only
    one chunk of them is in memory at a time, and each chunk is computed again for its gradients."""
    size = max(1, _CHUNK // model.config.language.vocab_size)
    total, num_right = hidden.new_zeros((), dtype=torch.float32), 0
    for chunk, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        loss, right = checkpoint(_chunk_loss, model, chunk, wanted, use_reentrant=False)
        total = total + loss
        num_right += int(right)
    return Loss(total, len(targets), num_right)


def _chunk_loss(model: InternVL, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.logits(hidden)  # [chunk, V]
    return F.cross_entropy(logits, targets, reduction="sum"), (logits.detach().argmax(-1) == targets).sum()


def checkpoint_layers(model: InternVL) -> None:
    """Make each layer keep only its input, and compute the rest again in the backward pass."""
    layers: list[nn.Module] = [*model.language_model.model.layers, *model.vision_model.encoder.layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
