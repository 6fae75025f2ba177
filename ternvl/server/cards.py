"""The elements of `GET /v1/models`, which describe the model and its adapters."""

from __future__ import annotations

import time
from typing import Any

from ternvl.lora.pool import AdapterPool, RegisteredAdapter
from ternvl.server.names import ModelNames


class ModelCards:
    """Describes the model and its adapters."""

    def __init__(self, names: ModelNames, adapters: AdapterPool, max_model_len: int) -> None:
        """`max_model_len` is the context length in tokens."""
        self._names, self._adapters, self._max_model_len = names, adapters, max_model_len
        self._created = int(time.time())

    def all(self) -> list[dict[str, Any]]:
        """Return the model under each of its names, then its adapters."""
        models = [self._card(name, self._created) for name in self._names.served]
        return models + [self.of_adapter(entry) for entry in self._names.adapters]

    def of(self, name: str) -> dict[str, Any]:
        """Return the element of a name that `ModelNames.resolve` returned."""
        if self._adapters.has(name):
            return self.of_adapter(self._adapters.known(name))
        return self._card(name, self._created)

    def of_adapter(self, entry: RegisteredAdapter) -> dict[str, Any]:
        """Return an adapter's element; its parent is the model."""
        return self._card(entry.name, entry.created) | {"parent": self._names.served[0]}

    def _card(self, name: str, created: int) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": created, "owned_by": "ternvl"}
        return card | {"max_model_len": self._max_model_len}
