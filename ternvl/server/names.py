"""The names of the served model and its adapters in requests and answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ternvl.config import ServerConfig
from ternvl.errors import RequestError, UnknownAdapterError
from ternvl.lora.pool import AdapterPool, RegisteredAdapter
from ternvl.server.errors import HTTPError
from ternvl.server.guard.caller import may_use

PLATFORM_MODEL = "opengvlab-internvl3-1b-instruct"
"""The id of the model on the platform."""

ALIASES = frozenset(
    {PLATFORM_MODEL, "OpenGVLab/InternVL3-1B", "OpenGVLab/InternVL3-1B-Instruct", "OpenGVLab/InternVL3-1B-hf"}
)
"""Names of the model on the platform and on the hub. They mean the served model, and answers have its own name."""

_SHOWN_NAMES = 20
_SHOWN_ADAPTERS = 10


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The model or the adapter that answers a request."""

    name: str
    """The name in answers: one of the model's names, or the adapter's."""
    adapter: str | None


class ModelNames:
    """The names that requests may use for the model and its adapters.

    An adapter that the sender of a request may not use is not there for it.
    """

    def __init__(self, llm_name: str, config: ServerConfig, adapters: AdapterPool) -> None:
        """`llm_name` is a folder or a name on the hub."""
        self.root = _public_name(llm_name)
        """What the model's names stand for: its name on the hub, or its folder's without the path."""
        self.served = config.served_model_name or (self.root,)
        """The model's own names. Answers have the first if the request uses none of them."""
        self.aliases = ALIASES | {llm_name} if _is_hub_name(llm_name) else ALIASES
        self._adapters = adapters

    def choose(self, model: str | None, lora: str | None = None) -> ChosenModel:
        """Return the model or adapter that answers a request with these fields. `model` may also name an adapter.

        Raises HTTPError 404 for a name that is not served, UnknownAdapterError for an adapter that is not loaded,
        RequestError for two different adapters.
        """
        name = self.resolve(model)
        adapter = name if self._has(name) else None
        if lora is None:
            return ChosenModel(name, adapter)
        if adapter not in (None, lora):
            raise RequestError(
                f"model names the adapter {adapter} and lora names another, but only one can answer.", param="lora"
            )
        if not self._has(lora):
            known = ", ".join(entry.name for entry in self.adapters[:_SHOWN_ADAPTERS]) or "there is none"
            raise UnknownAdapterError(f"The adapter {lora[:100]!r} is not loaded; loaded: {known}.", param="lora")
        return ChosenModel(lora, lora)

    @property
    def adapters(self) -> list[RegisteredAdapter]:
        """The adapters that the sender of the current request may use, sorted by name."""
        return [entry for entry in self._adapters.entries if may_use(entry.name)]

    def _has(self, name: str) -> bool:
        """Whether a name stands for an adapter that the sender of the current request may use."""
        return may_use(name) and self._adapters.has(name)

    def resolve(self, model: str | None) -> str:
        """Return the name of the model or adapter that answers. Raises HTTPError 404 for a name that is not served."""
        if model in self.served or (model is not None and self._has(model)):
            return str(model)
        if model is None or model in self.aliases:
            return self.served[0]
        served = ", ".join([*self.served, *(entry.name for entry in self.adapters)][:_SHOWN_NAMES])
        message = f"The model {model[:100]!r} is not served; the served models are: {served}."
        raise HTTPError(404, message, param="model", code="model_not_found")


def _is_hub_name(name: str) -> bool:
    return "/" in name and not Path(name).is_dir()


def _public_name(name: str) -> str:
    """Return the name of a folder without its path, which is not shown to clients."""
    return Path(name).resolve().name if Path(name).is_dir() else name
