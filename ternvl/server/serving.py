"""The objects that all endpoints share: the model, its names, its adapters, the engine's service and threads."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from typing import TYPE_CHECKING

from ternvl import __version__
from ternvl.config import ServerConfig
from ternvl.kernels.loader import library
from ternvl.server.adapters import AdapterService
from ternvl.server.cards import ModelCards
from ternvl.server.connection.limits import Connections, max_connections
from ternvl.server.debug.profiler import Profiler
from ternvl.server.guard.gate import Gate, GateLimits
from ternvl.server.guard.key_store import KeyStore
from ternvl.server.guard.reload import Reloader
from ternvl.server.metrics.recorder import Metrics, Served
from ternvl.server.names import ModelNames
from ternvl.server.threads import Threads
from ternvl.server.tracing.provider import Tracing

if TYPE_CHECKING:
    from ternvl.llm import LLM

_GRACE = 1.0
"""Seconds in which aborted requests can send their error."""

logger = logging.getLogger("ternvl.server")


class Serving:
    """One served model, with everything that its endpoints need."""

    def __init__(self, llm: LLM, config: ServerConfig) -> None:
        self.llm = llm
        self.config = config
        self.started = time.monotonic()
        self.is_stuck = False  # whether the log says that the present step does not end
        self.service = llm.service
        limits = GateLimits(
            config.max_concurrent_requests, config.max_total_body_bytes, config.min_body_rate, config.write_timeout
        )
        self.gate = Gate(limits, retry_after=self.service.retry_after)
        self.connections = Connections(max_connections(config), config.max_connections_per_client)
        self.keys = KeyStore(config)
        self.reloader = Reloader()
        self.reloader.add(self.keys)
        self.metrics_port = config.metrics_port
        self.names = ModelNames(llm.name, config, llm.adapters)
        self.metrics = Metrics(self.service.engine.stats, _served(llm, self.names.served[0]), config.metrics_names)
        self.adapters = AdapterService(llm.adapters, self.service, config, {*self.names.served, *self.names.aliases})
        self.cards = ModelCards(self.names, llm.adapters, llm.engine.config.max_model_len, llm.builder)
        self.threads = Threads(llm, config, self.metrics)
        self.tracing = Tracing.of(config)
        self.profiler = Profiler()
        self.fingerprint = _fingerprint(llm)

    async def start(self) -> None:
        """Start the engine's thread and the other threads."""
        self.service.start()
        self.threads.start()
        self.reloader.start()

    async def close(self) -> None:
        """Abort the requests that still run, and stop all threads."""
        self.service.abort_all()
        self.reloader.close()
        self.threads.close()
        self.profiler.close()
        self.adapters.close()
        await self.service.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    async def drain(self) -> None:
        """Refuse new requests, wait up to `drain_timeout` seconds for the running ones, and abort the rest."""
        self.gate.draining = True
        logger.info("The server is stopping; %d requests may finish.", self.gate.num_running)
        if await self.gate.wait_until_empty(self.config.drain_timeout):
            return
        logger.warning("The server is stopping; %d requests are aborted.", self.gate.num_running)
        self.service.abort_all()
        if not await self.gate.wait_until_empty(_GRACE):
            self.gate.give_up()
            await self.gate.wait_until_empty(_GRACE)

    def deadline(self) -> float | None:
        """Return the deadline of a request that arrives now, on the event loop's clock; None if there is no limit."""
        seconds = self.config.request_timeout
        return None if seconds is None else asyncio.get_running_loop().time() + seconds


def _served(llm: LLM, name: str) -> Served:
    """Return what the metrics say of the server itself."""
    engine, loaded = llm.engine.config, library()
    blocks = str(llm.engine.stats().num_blocks)
    return Served(
        name,
        {"version": __version__, "instruction_set": "torch" if loaded is None else loaded.isa},
        {"block_size": str(engine.block_size), "num_gpu_blocks": blocks, "num_cpu_blocks": "0"},
        engine.max_loras,
    )


def _fingerprint(llm: LLM) -> str:
    described = f"{__version__} {llm.name} {llm.config!r}"
    return "fp_" + hashlib.sha256(described.encode()).hexdigest()[:12]
