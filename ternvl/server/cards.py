"""The elements of `GET /v1/models`, which describe the model and its adapters."""

from __future__ import annotations

import time
from typing import Any

from ternvl.lora.pool import AdapterPool, RegisteredAdapter
from ternvl.prompt.build import PromptBuilder
from ternvl.server.names import ModelNames


class ModelCards:
    """Describes the model and its adapters."""

    def __init__(self, names: ModelNames, adapters: AdapterPool, max_model_len: int, builder: PromptBuilder) -> None:
        """`max_model_len` is the context length in tokens, `builder` cuts images into tiles."""
        self._names, self._adapters = names, adapters
        self._created = int(time.time())
        self._sizes = {"max_model_len": max_model_len, "image_tiling": _tiling(builder)}

    def all(self) -> list[dict[str, Any]]:
        """Return the model under each of its names, then its adapters."""
        models = [self._of_model(name) for name in self._names.served]
        return models + [self.of_adapter(entry) for entry in self._names.adapters]

    def of(self, name: str) -> dict[str, Any]:
        """Return the element of a name that `ModelNames.resolve` returned."""
        if self._adapters.has(name):
            return self.of_adapter(self._adapters.known(name))
        return self._of_model(name)

    def of_adapter(self, entry: RegisteredAdapter) -> dict[str, Any]:
        """Return an adapter's element; its parent is the model."""
        return self._card(entry.name, entry.created, entry.folder.name or entry.name, self._names.served[0])

    def _of_model(self, name: str) -> dict[str, Any]:
        return self._card(name, self._created, self._names.root, None)

    def _card(self, name: str, created: int, root: str, parent: str | None) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": created, "owned_by": "ternvl", "root": root}
        return card | {"parent": parent} | self._sizes


def _tiling(builder: PromptBuilder) -> dict[str, Any]:
    """Return how images are cut by default, from which a client can compute the tokens of an image."""
    config = builder.config
    return {
        "tile_size": config.tile_size,
        "tokens_per_tile": config.tokens_per_tile,
        "min_dynamic_patch": min(config.min_dynamic_patch, builder.max_dynamic_patch),
        "max_dynamic_patch": builder.max_dynamic_patch,
        "use_thumbnail": config.use_thumbnail,
    }
