"""What the decoder is given of an example's images."""

from __future__ import annotations

import torch
from torch import Tensor

from ternvl.finetune.dataset import Dataset
from ternvl.model.internvl import InternVL

_MEMORY = 1024**3
"""Bytes of features that are kept."""


class Features:
    """Context tokens of examples. Where nothing that makes them is trained, they are computed once and kept."""

    def __init__(self, model: InternVL, *, is_trained: bool) -> None:
        self._model, self._is_trained = model, is_trained
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._room = _MEMORY

    def of(self, dataset: Dataset, index: int) -> Tensor | None:
        """[image tokens, C], or None for an example without images."""
        if not dataset[index].image_tokens:
            return None
        key = (id(dataset), index)
        if key in self._kept:
            return self._kept[key].to(self._model.device)
        pixels = dataset.pixels(index)
        assert pixels is not None
        with torch.set_grad_enabled(self._is_trained and torch.is_grad_enabled()):
            # An example's tiles alone: the same bits, whoever stands beside it and wherever a run was taken up again.
            features = self._model.encode_tiles(pixels.to(self._model.device)).flatten(0, 1)
        if not self._is_trained and features.nbytes <= self._room:
            self._room -= features.nbytes
            self._kept[key] = features.cpu()
        return features
