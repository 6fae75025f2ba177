"""What a server does now, as JSON: counts, names and settings, and nothing that clients have sent or that is secret."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ternvl import __version__
from ternvl.engine.engine import Engine
from ternvl.server.debug.stacks import Stacks, thread_names
from ternvl.server.serving import Serving

_SHOWN_FRAMES = 40


def state_of(serving: Serving) -> dict[str, Any]:
    """Return the state. It is read beside the running engine, so its parts may be some steps apart."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "version": __version__,
        "pid": os.getpid(),
        "uptime_seconds": round(time.monotonic() - serving.started, 3),
        "server": {
            "draining": serving.gate.draining,
            "requests": serving.gate.num_running,
            "connections": len(serving.connections),
            "keys": len(serving.keys.keys.all),
        },
        "engine": _engine(serving),
        "sequences": _sequences(serving),
        "adapters": _adapters(serving),
        "image_workers": serving.threads.image_workers,
        "threads": list(_threads()),
        "settings": _settings(serving),
    }


def _engine(serving: Serving) -> dict[str, Any]:
    service, engine = serving.service, serving.service.engine
    told: dict[str, Any] = {
        "model": serving.names.served[0],
        "is_running": service.is_running,
        "seconds_in_step": round(service.seconds_in_step, 4),
        **dataclasses.asdict(engine.stats()),
    }
    if isinstance(engine, Engine):
        told |= {"kv_cache_bytes": engine.kv_cache_bytes, "kv_cache_tokens": engine.kv_cache_tokens}
        told |= {"num_cached_tiles": engine.scheduler.tiles.num_cached}
    return told


def _sequences(serving: Serving) -> list[dict[str, Any]]:
    engine = serving.service.engine
    return [dataclasses.asdict(each) for each in engine.sequences()] if isinstance(engine, Engine) else []


def _adapters(serving: Serving) -> dict[str, Any]:
    pool = serving.llm.adapters
    return {"names": [entry.name for entry in pool.entries], "num_in_memory": pool.num_resident}


def _threads() -> Iterator[dict[str, Any]]:
    """Yield the threads but the one that answers, each with its stack, the innermost function first."""
    names = thread_names()
    for ident, functions, line in Stacks().read():
        stack = [function.label for function in functions[:_SHOWN_FRAMES]]
        yield {"name": names.get(ident, "unnamed"), "waits": functions[0].waits, "line": line, "stack": stack}


def _settings(serving: Serving) -> dict[str, Any]:
    parts = {"server": serving.config, "engine": serving.service.engine.config, "images": serving.llm.builder.limits}
    return {name: dict(_shown(config)) for name, config in parts.items()}


def _shown(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a configuration. Of a secret one only whether it is set is said."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.repr:
            value = None if value is None else "(set)"
        yield field.name, str(value) if isinstance(value, Path) else value
