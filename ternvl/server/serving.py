"""What the endpoints share: the model, its names, the engine's service and the threads that build prompts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternvl import __version__
from ternvl.config import ServerConfig
from ternvl.engine.service import Service
from ternvl.server.errors import HTTPError
from ternvl.types import Prompt

if TYPE_CHECKING:
    from ternvl.llm import LLM

PLATFORM_MODEL = "opengvlab-internvl3-1b-instruct"
"""The hosted model's id. Clients that use it get the one model that is served; answers name that model."""


class Serving:
    """One served model."""

    def __init__(self, llm: LLM, config: ServerConfig) -> None:
        self.llm = llm
        self.config = config
        self.service = Service(llm.engine)
        self.names = config.served_model_name or (_public_name(llm.name),)
        self.created = int(time.time())
        self.fingerprint = _fingerprint(llm)
        self._builders = ThreadPoolExecutor(config.prompt_workers, thread_name_prefix="prompt")

    async def start(self) -> None:
        """Starts the engine's thread."""
        self.service.start()

    async def close(self) -> None:
        """Ends the engine's thread; requests that still run end with an error."""
        self._builders.shutdown(wait=False, cancel_futures=True)
        await self.service.close()

    def resolve(self, model: str | None) -> str:
        """The name of the model that answers; HTTPError 404 for a name that is not served."""
        if model is None or model == PLATFORM_MODEL:
            return self.names[0]
        if model in self.names:
            return model
        served = ", ".join(self.names)
        message = f"The model {model[:100]!r} is not served here; served: {served}."
        raise HTTPError(404, message, param="model", code="model_not_found")

    async def build_prompt(self, build: Callable[[], Prompt], *, has_images: bool) -> Prompt:
        """Runs `build` in a thread, so that streams of others go on meanwhile.

        Prompts with images have threads of their own: text does not wait for other people's downloads.
        """
        return await asyncio.get_running_loop().run_in_executor(self._builders if has_images else None, build)

    def model_card(self, name: str) -> dict[str, Any]:
        """One element of `GET /v1/models`."""
        card = {"id": name, "object": "model", "created": self.created, "owned_by": "ternvl"}
        return card | {"max_model_len": self.llm.engine.config.max_model_len}


def _public_name(name: str) -> str:
    """A folder is known by its own name: where it lies is nobody's business."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _fingerprint(llm: LLM) -> str:
    described = f"{__version__} {llm.name} {llm.config!r}"
    return "fp_" + hashlib.sha256(described.encode()).hexdigest()[:12]
