"""The model over several conversations at once, with gradients; and the loss on their answers.

Conversations stand one after another in a flat run of tokens, a pack, and see only themselves.

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
"""Logits that are in memory at once, about: at V = 151,674 those of 221 tokens."""


class PackedAttention:
    """Causal attention within each conversation of a pack: an `Attention`."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)
        self._causal = CausalAttention()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, D], k and v [T, K, D] -> [T, H, D]."""
        parts = zip(*(x.split(self._lengths) for x in (q, k, v)), strict=True)
        return torch.cat([self._causal(layer, *part) for part in parts])


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over the learned tokens, so that packs of different sizes add up."""

    total: Tensor
    """Cross-entropy, natural logarithm; [] float32."""
    num_tokens: int
    num_right: int
    """Tokens that are the likeliest, given all before them."""


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in runs of at most `limit` tokens in all, the longest first; what is longer has a run of its own."""
    runs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((i for i, left in enumerate(room) if lengths[index] <= left), len(runs))
        if place == len(runs):
            runs.append([])
            room.append(limit)
        runs[place].append(index)
        room[place] -= lengths[index]
    return runs


def answer_loss(model: InternVL, examples: Sequence[Example], features: Sequence[Tensor | None]) -> Loss:
    """The loss of a pack. `features[i]` are the context tokens [image tokens, C] of example i, None without images."""
    device = model.device
    lengths = [example.num_tokens for example in examples]
    ids = torch.cat([example.token_ids for example in examples]).to(device)  # [T]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    hidden = model.decode(_embed(model, ids, examples, features), positions, PackedAttention(lengths))  # [T, C]
    is_target = torch.cat([example.is_target for example in examples]).to(device)
    learned = is_target.nonzero().squeeze(1)  # [R]; a conversation never begins with one
    return _loss(model, hidden[learned - 1], ids[learned])


def _embed(model: InternVL, ids: Tensor, examples: Sequence[Example], features: Sequence[Tensor | None]) -> Tensor:
    """[T, C], image features in their places."""
    embeddings = model.embed(ids)
    rows: list[Tensor] = []
    begin = 0
    for example in examples:
        for start, count in zip(example.image_starts, example.image_tokens, strict=True):
            rows.append(torch.arange(begin + start, begin + start + count, device=ids.device))
        begin += example.num_tokens
    if not rows:
        return embeddings
    given = torch.cat([each for each in features if each is not None])
    return embeddings.index_copy(0, torch.cat(rows), given.to(embeddings.dtype))


def _loss(model: InternVL, hidden: Tensor, targets: Tensor) -> Loss:
    """hidden [R, C], targets [R]. A full-size vocabulary's logits of a whole pack would be gigabytes: only a chunk of
    them stands in memory, and is computed again for its gradients."""
    size = max(1, _CHUNK // model.config.language.vocab_size)
    total, num_right = hidden.new_zeros((), dtype=torch.float32), 0
    for part, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        loss, right = checkpoint(_chunk_loss, model, part, wanted, use_reentrant=False)
        total = total + loss
        num_right += int(right)
    return Loss(total, len(targets), num_right)


def _chunk_loss(model: InternVL, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.logits(hidden)  # [chunk, V]
    return F.cross_entropy(logits, targets, reduction="sum"), (logits.detach().argmax(-1) == targets).sum()


def checkpoint_layers(model: InternVL) -> None:
    """Have each layer keep only its input, and compute the rest again for its gradients."""
    layers: list[nn.Module] = [*model.language_model.model.layers, *model.vision_model.encoder.layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
