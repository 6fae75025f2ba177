"""The image features that the decoder takes for an example."""

from __future__ import annotations

import torch
from torch import Tensor

from ternvl.finetune.dataset import Dataset
from ternvl.model.internvl import InternVL

_MEMORY = 1024**3
"""Bytes of features that are cached at most."""


class Features:
    """The image features of examples, cached if neither the vision tower nor the projector is trained."""

    def __init__(self, model: InternVL, *, is_trained: bool) -> None:
        """`is_trained` says whether the vision tower or the projector is trained."""
        self._model, self._is_trained = model, is_trained
        self._cached: dict[tuple[int, int], Tensor] = {}
        self._room = _MEMORY

    def of(self, dataset: Dataset, index: int) -> Tensor | None:
        """Return the features [image tokens, C] of an example, or None if it has no images."""
        if not dataset[index].image_tokens:
            return None
        key = (id(dataset), index)
        if key in self._cached:
            return self._cached[key].to(self._model.device)
        pixels = dataset.pixels(index)
        assert pixels is not None
        with torch.set_grad_enabled(self._is_trained and torch.is_grad_enabled()):
            # Each example is encoded by itself, so its bits depend neither on the batch nor on where a run was resumed.
            features = self._model.encode_tiles(pixels.to(self._model.device)).flatten(0, 1)
        if not self._is_trained and features.nbytes <= self._room:
            self._room -= features.nbytes
            self._cached[key] = features.cpu()
        return features
