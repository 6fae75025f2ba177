"""What the endpoints share: the model, its names, the engine's service and the threads that build prompts."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ternvl import __version__
from ternvl.config import ServerConfig
from ternvl.engine.service import Service
from ternvl.errors import RequestError, RequestTimeoutError
from ternvl.lora.pool import Entry
from ternvl.params import Grammar
from ternvl.server.adapters import Adapters, card
from ternvl.server.errors import HTTPError
from ternvl.server.guard.gate import Gate
from ternvl.server.metrics import Metrics

if TYPE_CHECKING:
    from ternvl.llm import LLM
    from ternvl.sampling.grammar import CompiledGrammar

PLATFORM_MODEL = "opengvlab-internvl3-1b-instruct"
"""The hosted model's id."""

ALIASES = frozenset(
    {PLATFORM_MODEL, "OpenGVLab/InternVL3-1B", "OpenGVLab/InternVL3-1B-Instruct", "OpenGVLab/InternVL3-1B-hf"}
)
"""What the hosted model is called here and there. Clients that use these names get the one model that is served, and
answers name that model."""

_COMPILERS = 2
"""Grammars that are compiled at the same time; further ones wait, and hold up nobody else."""

_SETTLED = 1.0
"""Seconds after the start in which the vocabulary is read for grammars: it would slow the start down."""

_GRACE = 1.0
"""Seconds in which a request that was given up tells its client so."""

_SHOWN_NAMES = 20

T = TypeVar("T")

logger = logging.getLogger("ternvl.server")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Choice:
    """What answers a request."""

    name: str
    """As answers call it: a name of the model, or the adapter's."""
    adapter: str | None


class Serving:
    """One served model."""

    def __init__(self, llm: LLM, config: ServerConfig) -> None:
        self.llm = llm
        self.config = config
        self.service = Service(llm.engine)
        self.gate = Gate(config.max_concurrent_requests, retry_after=partial(self.service.retry_after, 1))
        self.metrics = Metrics(self.service.engine.stats)
        self.names = config.served_model_name or (_public_name(llm.name),)
        self.aliases = ALIASES | {llm.name} if _is_hub_name(llm.name) else ALIASES
        self.adapters = Adapters(llm.adapters, self.service, config, {*self.names, *self.aliases})
        self.created = int(time.time())
        self.fingerprint = _fingerprint(llm)
        self._builders = ThreadPoolExecutor(config.prompt_workers, thread_name_prefix="prompt")
        self._compilers = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="grammar")
        self._preparing: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Starts the engine's thread."""
        self.service.start()
        loop = asyncio.get_running_loop()
        self._preparing = loop.call_later(_SETTLED, self._compilers.submit, self.llm.grammars.prepare)

    async def close(self) -> None:
        """Ends the engine's thread; requests that still run end with an error."""
        self.service.abort_all()
        if self._preparing is not None:
            self._preparing.cancel()
        self._builders.shutdown(wait=False, cancel_futures=True)
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self.adapters.close()
        await self.service.close()

    async def drain(self) -> None:
        """Refuses new requests, waits `drain_timeout` seconds for those that are here, and gives up the rest."""
        self.gate.draining = True
        logger.info("stopping: %d requests may finish", self.gate.num_running)
        if await self.gate.wait_until_empty(self.config.drain_timeout):
            return
        logger.warning("stopping: %d requests are given up", self.gate.num_running)
        self.service.abort_all()
        if not await self.gate.wait_until_empty(_GRACE):
            self.gate.give_up()
            await self.gate.wait_until_empty(_GRACE)

    def deadline(self) -> float | None:
        """When a request that comes now must have its answer, on the event loop's clock; None for never."""
        seconds = self.config.request_timeout
        return None if seconds is None else asyncio.get_running_loop().time() + seconds

    def choose(self, model: str | None, lora: str | None = None) -> Choice:
        """What answers a request for a model, or an adapter in its place, and for the adapter `lora`.

        Raises HTTPError 404 for a name that is not served, UnknownAdapterError for an adapter that is not loaded,
        RequestError for two different ones.
        """
        name = self.resolve(model)
        adapter = name if self.adapters.pool.has(name) else None
        if lora is None:
            return Choice(name, adapter)
        if adapter not in (None, lora):
            raise RequestError(f"model is the adapter {adapter} and lora another; one answers.", param="lora")
        return Choice(self.adapters.pool.known(lora).name, lora)

    def resolve(self, model: str | None) -> str:
        """The name of the model or the adapter that answers; HTTPError 404 for a name that is not served."""
        if model in self.names or (model is not None and self.adapters.pool.has(model)):
            return str(model)
        if model is None or model in self.aliases:
            return self.names[0]
        served = ", ".join([*self.names, *(entry.name for entry in self.adapters.pool.entries)][:_SHOWN_NAMES])
        message = f"The model {model[:100]!r} is not served here; served: {served}."
        raise HTTPError(404, message, param="model", code="model_not_found")

    def check_cost(self, num_answers: int, max_tokens: int | None) -> None:
        """Raises RequestError for more answer tokens than a request may have, and what `Service.check_room` raises."""
        longest = self.llm.engine.config.max_model_len
        each, budget = min(max_tokens or longest, longest), self.config.max_answer_tokens
        if num_answers * each > budget:
            message = (
                f"n is {num_answers} and max_tokens {each}: {num_answers * each} tokens of answers, but one request "
                f"may have {budget}."
            )
            raise RequestError(message, param="n", code="too_many_answer_tokens")
        self.service.check_room(num_answers)

    async def build_prompt(self, build: Callable[[], T], *, has_images: bool, deadline: float | None = None) -> T:
        """Runs `build` in a thread, so that streams of others go on meanwhile.

        Prompts with images have threads of their own: text does not wait for other people's downloads. Raises
        RequestTimeoutError past the deadline.
        """
        return await _in_thread(self._builders if has_images else None, build, deadline)

    async def compile(self, grammar: Grammar | None, *, deadline: float | None = None) -> CompiledGrammar | None:
        """The grammar, compiled in threads that do nothing else; the engine finds it for as long as it is held.

        Raises RequestError for one that is not served, RequestTimeoutError past the deadline.
        """
        if grammar is None:
            return None
        return await _in_thread(self._compilers, partial(self.llm.grammars.compile, grammar), deadline)

    def model_cards(self) -> list[dict[str, Any]]:
        """What `GET /v1/models` lists: the model under its names, then its adapters."""
        cards = [self.model_card(name) for name in self.names]
        return cards + [self.adapter_card(entry) for entry in self.adapters.pool.entries]

    def adapter_card(self, entry: Entry) -> dict[str, Any]:
        """An adapter, as `GET /v1/models` has it."""
        return card(entry, self.names[0], self.llm.engine.config.max_model_len)

    def model_card(self, name: str) -> dict[str, Any]:
        """One element of `GET /v1/models`."""
        if self.adapters.pool.has(name):
            return self.adapter_card(self.adapters.pool.known(name))
        card = {"id": name, "object": "model", "created": self.created, "owned_by": "ternvl"}
        return card | {"max_model_len": self.llm.engine.config.max_model_len}


async def _in_thread(pool: Executor | None, work: Callable[[], _T], deadline: float | None) -> _T:
    """Raises RequestTimeoutError past the deadline, a time of the event loop's clock."""
    working = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await working
    except TimeoutError:
        if limit.expired():
            raise RequestTimeoutError from None
        raise


def _is_hub_name(name: str) -> bool:
    return "/" in name and not Path(name).is_dir()


def _public_name(name: str) -> str:
    """A folder is known by its own name: where it lies is nobody's business."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _fingerprint(llm: LLM) -> str:
    described = f"{__version__} {llm.name} {llm.config!r}"
    return "fp_" + hashlib.sha256(described.encode()).hexdigest()[:12]
