"""Runs the model: owns what lives on its device beside the weights, the KV cache and the images' features.

Shapes: N tiles, M tokens a tile, C hidden size, S sequences that get a token, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ternvl.engine.batch import Batch
from ternvl.engine.scheduler import Chunk, Schedule
from ternvl.model.internvl import InternVL
from ternvl.model.kv_cache import KVCache, PagedAttention


class Runner:
    """A model with its cache. It is told what to compute and decides nothing."""

    def __init__(self, model: InternVL, *, num_blocks: int, block_size: int) -> None:
        self.model = model
        self.device, self.dtype = model.device, model.dtype
        self.cache = KVCache(model.config.language, num_blocks, block_size, dtype=self.dtype, device=self.device)
        self._features: dict[str, Tensor] = {}  # by request: [N, M, C], rows filled as tiles are encoded

    @property
    def request_ids(self) -> set[str]:
        """Requests whose features are kept."""
        return set(self._features)

    def encode(self, schedule: Schedule) -> None:
        """Encode the tiles of a schedule, those of all sequences together, and keep their features."""
        chunks = [chunk for chunk in schedule.chunks if chunk.num_tiles]
        if not chunks:
            return
        pixels = torch.cat([_tiles(chunk) for chunk in chunks]).to(self.device)
        features = torch.split(self.model.encode_tiles(pixels), [chunk.num_tiles for chunk in chunks])
        for chunk, rows in zip(chunks, features, strict=True):
            sequence = chunk.sequence
            kept = self._features.setdefault(sequence.id, rows.new_empty(sequence.num_tiles, *rows.shape[1:]))
            kept[chunk.first_tile : chunk.first_tile + chunk.num_tiles] = rows

    def run(self, batch: Batch) -> Tensor:
        """Logits [S, V] in float32 of the rows that are sampled."""
        self.cache.clear(batch.new_blocks)
        embeddings = self.model.embed(batch.token_ids)
        for rows in batch.images:
            features = self._features[rows.request_id].flatten(0, 1)
            embeddings[rows.start : rows.start + rows.count] = features[rows.first : rows.first + rows.count]
        if len(embeddings):
            attention = PagedAttention(self.cache, batch.slots, batch.groups)
            embeddings = self.model.decode(embeddings, batch.positions, attention)  # [T, C], hidden states now
        return self.model.logits(embeddings[batch.sampled_rows])

    def release(self, request_id: str) -> None:
        """Forget a request's features."""
        self._features.pop(request_id, None)


def _tiles(chunk: Chunk) -> Tensor:
    pixels = chunk.sequence.request.prompt.pixel_values
    assert pixels is not None
    return pixels[chunk.first_tile : chunk.first_tile + chunk.num_tiles]
