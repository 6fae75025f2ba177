"""`Tasks` and `AsyncTasks`: the tasks over a server or an engine, on a thread or on an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from ternvl.errors import ConfigError, TaskError
from ternvl.limits import ImageLimits
from ternvl.prompt.images import check_limits
from ternvl.tasks import places, texts
from ternvl.tasks.inprocess import EngineBackend
from ternvl.tasks.prompts import Prompts, prompts_for
from ternvl.tasks.requests import Backend, Reply, TaskRequest
from ternvl.tasks.server import ServerBackend
from ternvl.tasks.steps import Steps, TaskSettings

if TYPE_CHECKING:
    from ternvl.llm import LLM

_P = ParamSpec("_P")
_T = TypeVar("_T")


def backend_of(
    server: str | LLM | Backend,
    *,
    api_key: str | None = None,
    model: str | None = None,
    image_token: str | None = "<image>",
) -> Backend:
    """Return the backend for a server's address or an `LLM`. The arguments and errors are those of `Tasks`."""
    if not isinstance(server, str) and (api_key is not None or image_token != "<image>"):
        raise ConfigError("api_key and image_token are for servers; a model of this process takes neither.")
    if isinstance(server, str):
        return ServerBackend(server, api_key=api_key, model=model, image_token=image_token)
    return server if isinstance(server, Backend) else EngineBackend(server, adapter=model)


class _Client:
    """What both kinds of clients know."""

    def __init__(
        self,
        server: str | LLM | Backend,
        *,
        api_key: str | None = None,
        model: str | None = None,
        prompts: Prompts | None = None,
        limits: ImageLimits | None = None,
        max_tokens: int = 1024,
        image_token: str | None = "<image>",
    ) -> None:
        """Ask a server, given its address such as http://127.0.0.1:8000/v1, or an `LLM` of this process.

        `model` is the name of the model or adapter that answers; None is what the server serves, or the `LLM` without
        an adapter. `prompts` are the questions' texts, by default those of `prompts_for` the model that is served.
        `limits` say what an image may cost and which URLs may be fetched. `image_token` marks the places of several
        images in a text; None sends texts and images in turn, for servers that do not know InternVL. `api_key` and
        `image_token` are for servers. Raises ConfigError for an invalid setting.
        """
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens!r}, but must be an integer of at least 1.")
        limits = limits or ImageLimits()
        check_limits(limits)
        self._backend = backend_of(server, api_key=api_key, model=model, image_token=image_token)
        self._name = getattr(server, "name", None) or model
        self._given = prompts, limits, max_tokens
        self._has_asked = False

    def _settings(self) -> TaskSettings:
        """Return what tasks have in common. The prompts depend on the model of a server, which is asked once."""
        prompts, limits, max_tokens = self._given
        if prompts is None and not self._has_asked and isinstance(self._backend, ServerBackend):
            with suppress(TaskError):  # the task itself tells that the server cannot be reached
                self._name = self._backend.base_model() or self._name
                self._has_asked = True
        return TaskSettings(prompts or prompts_for(self._name), limits, max_tokens)


def _advance(running: Steps[_T], replies: list[Reply] | None) -> tuple[list[TaskRequest], list[_T]]:
    """Run a task to its next requests; return these, and the result once it has ended."""
    try:
        return next(running) if replies is None else running.send(replies), []
    except StopIteration as ended:
        return [], [ended.value]


def _describe(method: Any, task: Callable[..., Steps[Any]]) -> None:
    """Give a method the name, the text and the signature of its task, whose first parameter becomes `self`."""
    update_wrapper(method, task)
    signature = inspect.signature(task)
    first, *others = signature.parameters.values()
    result = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
    named = [first.replace(name="self", annotation=inspect.Parameter.empty), *others]
    method.__signature__ = signature.replace(parameters=named, return_annotation=result)
    method.__annotations__ = {**task.__annotations__, "return": result}
    del method.__annotations__[first.name]


def _waiting(task: Callable[Concatenate[TaskSettings, _P], Steps[_T]]) -> Callable[Concatenate[Tasks, _P], _T]:
    """Return a task as a method that waits for its result."""

    def method(self: Tasks, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        running = task(self._settings(), *args, **kwargs)
        asked, result = _advance(running, None)
        while not result:
            asked, result = _advance(running, self._backend.answer(asked))
        return result[0]

    _describe(method, task)
    return method


def _awaited(
    task: Callable[Concatenate[TaskSettings, _P], Steps[_T]],
) -> Callable[Concatenate[AsyncTasks, _P], Coroutine[Any, Any, _T]]:
    """Return a task as a coroutine. Images are fetched and decoded, and answers are parsed, off the event loop."""

    async def method(self: AsyncTasks, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        settings = await asyncio.to_thread(self._settings)
        running = task(settings, *args, **kwargs)
        asked, result = await asyncio.to_thread(_advance, running, None)
        while not result:
            replies = await self._backend.aanswer(asked)
            asked, result = await asyncio.to_thread(_advance, running, replies)
        return result[0]

    _describe(method, task)
    return method


class Tasks(_Client):
    """Tasks that wait for their results. Threads may share a client.

    All tasks raise UnparsableAnswer for an answer that does not have their form; TaskError for a server that cannot be
    asked; ImageError for an image that cannot be used; RequestError for other arguments that are invalid.
    """

    ground = _waiting(places.ground)
    detect = _waiting(places.detect)
    point = _waiting(places.point)
    click = _waiting(places.click)
    agent_step = _waiting(places.agent_step)
    inspect = _waiting(places.inspect)
    read = _waiting(texts.read)
    text = _waiting(texts.text)
    caption = _waiting(texts.caption)
    count = _waiting(texts.count)
    choose = _waiting(texts.choose)
    yes_no = _waiting(texts.yes_no)
    compare = _waiting(texts.compare)
    views = _waiting(texts.views)
    video = _waiting(texts.video)

    def close(self) -> None:
        """Close the connections to the server."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTasks(_Client):
    """The same tasks as coroutines: `await tasks.ground(image, "the red car")`. A client belongs to one event loop."""

    ground = _awaited(places.ground)
    detect = _awaited(places.detect)
    point = _awaited(places.point)
    click = _awaited(places.click)
    agent_step = _awaited(places.agent_step)
    inspect = _awaited(places.inspect)
    read = _awaited(texts.read)
    text = _awaited(texts.text)
    caption = _awaited(texts.caption)
    count = _awaited(texts.count)
    choose = _awaited(texts.choose)
    yes_no = _awaited(texts.yes_no)
    compare = _awaited(texts.compare)
    views = _awaited(texts.views)
    video = _awaited(texts.video)

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._backend.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
