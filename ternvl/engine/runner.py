"""Runs the model, and owns the KV cache and the image features on its device.

Shapes: T tokens, N tiles, M tokens per tile, C hidden size, R rows whose logits are needed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ternvl.engine.batch import Batch
from ternvl.engine.schedule import TileWork
from ternvl.kernels.memory import allocate
from ternvl.lora.adapter import Adapter
from ternvl.lora.bank import AdapterBank, Span, attach
from ternvl.model.internvl import InternVL
from ternvl.model.kv_cache import PagedAttention, copy_blocks, make_cache


class Runner:
    """A model with its cache. It computes what it is given and decides nothing itself."""

    def __init__(self, model: InternVL, *, num_blocks: int, block_size: int, cache_dtype: torch.dtype) -> None:
        """The KV cache gets `num_blocks` blocks of `block_size` tokens in `cache_dtype`."""
        self.model = model
        self.device, self.dtype = model.device, model.dtype
        language = model.config.language
        self.cache = make_cache(language, num_blocks, block_size, dtype=cache_dtype, device=self.device)
        self._features: dict[bytes, Tensor] = {}  # by what stands for a tile in the cache: [M, C]
        self.adapters: AdapterBank | None = None
        """None until the first adapter is used, so that a model without adapters stays unchanged."""

    @property
    def tiles(self) -> set[bytes]:
        """The tiles whose features are in memory."""
        return set(self._features)

    def encode(self, work: Sequence[TileWork]) -> None:
        """Encode tiles, all in one call, and keep their features."""
        if not work:
            return
        pixels = torch.cat([_pixels(each) for each in work]).to(self.device)
        spans = [(each.sequence.request.adapter, place, place + 1) for place, each in enumerate(work)]
        with self._with_adapters(spans, len(pixels)):
            encoded = self.model.encode_tiles(pixels)  # [N, M, C]
        for each, features in zip(work, encoded, strict=True):
            self._features[each.key] = _alone(features)

    def load(self, stored: Mapping[bytes, memoryview]) -> None:
        """Keep features that were read from disk, as `stored_form` returned them."""
        for key, content in stored.items():
            rows = torch.frombuffer(content, dtype=self.dtype).view(self.model.config.tokens_per_tile, -1)
            self._features[key] = rows.to(self.device)

    def stored_form(self, key: bytes) -> memoryview:
        """Return the features of a tile as bytes, which must not be changed."""
        return self._features[key].contiguous().cpu().view(torch.uint8).numpy().data.cast("B")

    def run(self, batch: Batch) -> Tensor:
        """Run a batch; return its hidden states [T, C]."""
        if batch.copies.numel():
            copy_blocks(self.cache, *batch.copies)
        embeddings = self.model.embed(batch.token_ids)
        for rows in batch.tiles:
            features = self._features[rows.key]
            embeddings[rows.start : rows.start + rows.count] = features[rows.first : rows.first + rows.count]
        if len(embeddings):
            attention = PagedAttention(self.cache, batch.slots, batch.block_tables, batch.query_starts, batch.lengths)
            with self._with_adapters(batch.adapters, len(embeddings)):
                embeddings = self.model.decode(embeddings, batch.positions, attention)  # [T, C], hidden states now
        return embeddings

    def logits(self, hidden: Tensor, adapters: Sequence[Span]) -> Tensor:
        """Return the logits [R, V] in float32 of rows of hidden states [R, C]; `adapters` are spans of these rows."""
        with self._with_adapters(adapters, len(hidden)):
            return self.model.logits(hidden)

    def retain_adapter(self, adapter: Adapter | None) -> None:
        """Keep an adapter installed for one more sequence, until `release_adapter`. None is ignored."""
        if adapter is not None:
            self.adapters = self.adapters or attach(self.model)
            self.adapters.install(adapter)

    def release_adapter(self, adapter: Adapter | None) -> None:
        """Release an adapter for one sequence. None is ignored."""
        if adapter is not None:
            assert self.adapters is not None
            self.adapters.release(adapter)

    def _with_adapters(self, spans: Sequence[Span], num_rows: int) -> AbstractContextManager[None]:
        return self.adapters.active(spans, num_rows) if self.adapters else nullcontext()

    def drop(self, tiles: Iterable[bytes]) -> None:
        """Drop the features of tiles, those of them that have any."""
        for key in tiles:
            self._features.pop(key, None)


def _alone(features: Tensor) -> Tensor:
    """Return a copy in memory of its own.

    A view would keep the features of other tiles in memory. On the CPU the copy is mapped by itself: long-lived tensors
    among the C library's short-lived ones would keep it from returning freed memory, and the process would grow.
    """
    if features.device.type != "cpu":
        return features.clone()
    return allocate(features.nbytes).view(features.dtype).view(features.shape).copy_(features)


def _pixels(work: TileWork) -> Tensor:
    """Return the pixels [1, 3, S, S] of a tile."""
    pixels = work.sequence.request.prompt.pixel_values
    assert pixels is not None
    return pixels[work.row : work.row + 1]
