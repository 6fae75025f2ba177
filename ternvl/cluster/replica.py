"""A replica: one engine with its application, in a process that Ray Serve starts, watches and ends."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

from ray import serve

from ternvl.cluster.adapters import SharedAdapters
from ternvl.cluster.exchange import REPLICA, ForwardedRequest, Message, answers
from ternvl.cluster.settings import ClusterSettings
from ternvl.errors import EngineError, TernvlError
from ternvl.kernels import build


class EngineReplica:
    """Loads the model once and answers requests with the server's own application."""

    async def __init__(self, plain: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        """`plain` are the settings as `ClusterSettings.plain` returns them.

        Raises TernvlError if the model cannot be loaded, which names the replica and the reason.
        """
        self.name = serve.get_replica_context().replica_id.unique_id
        self._stack = AsyncExitStack()
        settings = ClusterSettings.of(plain)
        try:
            await self._start(settings)
        except TernvlError as error:
            model = settings.model or "the embedded model"
            raise TernvlError(f"The replica {self.name} cannot load {model}: {error}") from None

    async def _start(self, settings: ClusterSettings) -> None:
        build.start()
        from ternvl.llm import LLM
        from ternvl.server import create_app
        from ternvl.server.log.lines import configure

        configure(settings.server.log_level, settings.server.log_format)
        began = time.perf_counter()
        self.llm = LLM(settings.model, settings.loading, settings.engine, settings.images, settings.videos)
        # Adapters are registered when requests name them, not read at the start.
        folder = settings.server.lora_dir
        own = replace(settings.server, lora_dir=None, allowed_lora_dirs=() if folder is None else (str(folder),))
        self._app = create_app(self.llm, own)
        self._serving = self._app.state.serving
        if folder is not None:
            self._app.add_middleware(SharedAdapters, service=self._serving.adapters, folder=folder)
            self._app.user_middleware.append(self._app.user_middleware.pop(0))  # behind the check of keys
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        self.seconds_to_load = time.perf_counter() - began

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[list[Message]]:
        """Yield the messages of the application's answer. Cancelling it ends the request in the engine."""
        async with aclosing(answers(self._app, request)) as batches:
            async for messages in batches:
                for message in messages:
                    if message["type"] == "http.response.start":
                        message[REPLICA] = self.name
                yield messages

    async def check_health(self) -> None:
        """Raise EngineError if the engine's thread has ended, or if its step does not end. Serve then replaces it."""
        seconds, limit = self.llm.service.seconds_in_step, self._serving.config.stuck_timeout
        if seconds > limit:
            raise EngineError(f"The engine of the replica {self.name} is stuck in a step for {seconds:.0f} s.")
        if not self.llm.service.is_running:
            raise EngineError(f"The engine of the replica {self.name} has ended.")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the number of replicas is decided by, beside the requests that Serve counts."""
        stats = self.llm.engine.stats()
        return {"kv_cache_use": stats.kv_cache_use, "waiting": float(stats.num_waiting)}

    async def metrics(self) -> tuple[str, str]:
        """Return the replica's name and its metrics in Prometheus' text format."""
        return self.name, self._serving.metrics.render().decode()

    async def state(self) -> dict[str, Any]:
        """Return what tests and measurements ask each replica: its process and the engine's counts."""
        stats = self.llm.engine.stats()
        counted = {name: getattr(stats, name) for name in type(stats).__slots__}
        adapters = [entry.name for entry in self.llm.adapters.entries if entry.adapter is not None]
        return counted | {
            "replica": self.name,
            "pid": os.getpid(),
            "resident_adapters": adapters,
            "seconds_to_load": self.seconds_to_load,
        }

    async def drain(self) -> None:
        """Refuse new requests with 503, and wait for the running ones, which are aborted after `drain_timeout`."""
        if not self._serving.gate.draining:
            await self._serving.drain()

    async def __del__(self) -> None:
        """Drain what Serve has left, and stop the engine. Serve calls it once the replica's requests have ended."""
        if getattr(self, "_serving", None) is not None:
            await self.drain()
        if getattr(self, "_stack", None) is not None:
            await self._stack.aclose()
