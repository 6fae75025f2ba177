"""A tiny random model, an engine that says what it is told, and a server on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
import uvicorn

from ternvl.config import EngineConfig, LanguageConfig, ModelConfig, ServerConfig, VisionConfig
from ternvl.engine.admission.backlog import Backlog
from ternvl.engine.request import Request
from ternvl.engine.stats import EngineStats
from ternvl.errors import TernvlError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.llm import LLM
from ternvl.model.internvl import InternVL
from ternvl.server import bind, create_app
from ternvl.server.connection.protocol import protocol_of
from ternvl.types import FinishReason, TokenOutput
from tests.fakes import tiny_tokenizer


def tiny_config() -> ModelConfig:
    """4 context tokens a tile of 28 pixels, a decoder of two layers."""
    return ModelConfig(
        VisionConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, image_size=56, patch_size=14),
        LanguageConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            intermediate_size=32,
            vocab_size=tiny_tokenizer().vocab_size,
        ),
        system_message="You see.",
        dtype="float32",
    )


@cache
def tiny_model() -> InternVL:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return InternVL(tiny_config())


def tiny_llm(*, limits: ImageLimits | None = None, **options: Any) -> LLM:
    """The real engine over random weights."""
    options = {"max_model_len": 512, "max_num_seqs": 8, **options}
    return LLM.from_parts(tiny_model(), tiny_tokenizer(), name="tiny", limits=limits, **options)


@dataclass
class ScriptedEngine:
    """Answers each request with the same text, one token a step; stops of its own accord at the end of it.

    `failure` is raised on adding a request; `fail_after` tokens an answer breaks; `endless` repeats the text. All
    requests but the first are told as waiting. `cached` are the counts of spared tokens that requests are told in turn.
    """

    text: str
    failure: TernvlError | None = None
    fail_after: int | None = None
    endless: bool = False
    cached: tuple[int, ...] = (0,)
    config: EngineConfig = field(default_factory=lambda: EngineConfig(max_model_len=1024))
    requests: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._running: dict[str, tuple[Request, Iterator[int]]] = {}
        self._num_steps = self._num_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def add(self, request: Request) -> None:
        if self.failure:
            raise self.failure
        self.requests.append(request)
        self._running[request.id] = (request, self._tokens())

    def step(self) -> list[TokenOutput]:
        time.sleep(0.001)  # a model that takes no time at all would leave the event loop none
        self._num_steps += 1
        if self.fail_after is not None and self._num_steps > self.fail_after:
            self._num_steps = 0
            raise RuntimeError("secret detail of the machine")
        return [self._next(*work) for work in list(self._running.values())]

    def abort(self, request_id: str) -> None:
        if self._running.pop(request_id, None):
            self.aborted.append(request_id)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=min(1, len(self._running)),
            num_waiting=max(0, len(self._running) - 1),
            num_steps=self._num_steps,
            num_generated_tokens=self._num_tokens,
        )

    def backlog(self, *, has_images: bool) -> Backlog:
        most = [request.params.max_tokens or 1_000 for request, _ in self._running.values()]
        return Backlog(tuple((0, each) for each in most[:1]), tuple(most[1:]), num_slots=1)

    def _tokens(self) -> Iterator[int]:
        while True:
            yield from tiny_tokenizer().encode_text(self.text)
            if not self.endless:
                return

    def _next(self, request: Request, tokens: Iterator[int]) -> TokenOutput:
        token_id = next(tokens, None)
        if token_id is not None:
            cached = self.cached[self.requests.index(request) % len(self.cached)]
            self._num_tokens += 1
            return TokenOutput(request.id, (token_id,), num_cached_tokens=cached)
        del self._running[request.id]
        return TokenOutput(request.id, (), FinishReason.STOP)


def scripted_llm(
    text: str, *, limits: ImageLimits | None = None, videos: VideoLimits | None = None, **options: Any
) -> LLM:
    """The tiny model's prompts, a scripted engine's answers."""
    llm = tiny_llm(limits=limits, videos=videos)
    engine = ScriptedEngine(text, **options)
    llm.engine = llm.service.engine = engine  # type: ignore[assignment]
    return llm


@contextmanager
def serving(llm: LLM, *, loop: Literal["auto", "asyncio"] = "auto", **options: Any) -> Iterator[str]:
    """The address of a server of `llm` on a free port; `options` are fields of `ServerConfig`."""
    config = ServerConfig(port=0, log_level="error", **options)
    with bind(config) as sock:
        app = create_app(llm, config)
        http = protocol_of(config, app.state.serving.connections)
        server = uvicorn.Server(
            uvicorn.Config(app, http=http, loop=loop, log_level="error", timeout_graceful_shutdown=5)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        try:
            yield "http://{}:{}".format(*sock.getsockname())
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
