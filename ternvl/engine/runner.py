"""Runs the model, and owns the KV cache and the image features on its device.

Shapes: T tokens, N tiles, M tokens per tile, C hidden size, R rows whose logits are needed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate

import torch
from torch import Tensor

from ternvl.engine.batch import Batch
from ternvl.engine.schedule import TileWork
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
        self._features: dict[bytes, Tensor] = {}  # by image digest: [N, M, C], filled as tiles are encoded
        self.adapters: AdapterBank | None = None
        """None until the first adapter is used, so that a model without adapters stays unchanged."""

    @property
    def image_digests(self) -> set[bytes]:
        """Digests of the images whose features are in memory."""
        return set(self._features)

    def encode(self, work: Sequence[TileWork]) -> None:
        """Encode tiles, those of all images in one call, and keep their features."""
        if not work:
            return
        pixels = torch.cat([_pixels(each) for each in work]).to(self.device)
        stops = accumulate(each.count for each in work)
        spans = [
            (each.sequence.request.adapter, stop - each.count, stop) for each, stop in zip(work, stops, strict=True)
        ]
        with self._with_adapters(spans, len(pixels)):
            encoded = self.model.encode_tiles(pixels)
        features = torch.split(encoded, [each.count for each in work])
        for each, rows in zip(work, features, strict=True):
            empty = rows.new_empty(each.image.num_tiles, *rows.shape[1:])
            kept = self._features.setdefault(each.image.digest, empty)
            kept[each.first : each.first + each.count] = rows

    def run(self, batch: Batch) -> Tensor:
        """Run a batch; return its hidden states [T, C]."""
        if batch.copies.numel():
            copy_blocks(self.cache, *batch.copies)
        embeddings = self.model.embed(batch.token_ids)
        for rows in batch.images:
            features = self._features[rows.digest].flatten(0, 1)
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

    def retain(self, digests: AbstractSet[bytes]) -> None:
        """Drop the features of all images but those of `digests`."""
        for digest in self._features.keys() - digests:
            del self._features[digest]


def _pixels(work: TileWork) -> Tensor:
    pixels = work.sequence.request.prompt.pixel_values
    assert pixels is not None
    first = work.image.first_tile + work.first
    return pixels[first : first + work.count]
