"""What a task asks a model, apart from how the model is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from ternvl.errors import UnparsableAnswer
from ternvl.tasks.pictures import Picture

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """One question to a model, which is answered greedily."""

    parts: tuple[str | Picture, ...]
    """Texts and images of the user's turn, in their order."""
    system: str | None = None
    """The system message; None takes the model's own."""
    schema: Mapping[str, Any] | None = None
    """The JSON Schema of the answer."""
    max_tokens: int = 1024
    max_tiles: int | None = None
    """The most tiles that an image is cut into; None leaves it to the server."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered, without its reasoning."""

    text: str
    is_cut: bool = False
    """Whether the answer reached the request's `max_tokens`."""

    def whole(self) -> str:
        """Return the text. Raises UnparsableAnswer if it was cut, or if there is none."""
        if self.is_cut:
            raise UnparsableAnswer("is not complete; more tokens (max_tokens) may help", self.text)
        if not self.text.strip():
            raise UnparsableAnswer("is empty", self.text)
        return self.text


@runtime_checkable
class Backend(Protocol):
    """A way to reach a model."""

    def answer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        """Answer requests, several at a time. Raises TaskError, and errors of the engine within this process."""

    async def aanswer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        """`answer` for an event loop."""

    def close(self) -> None:
        """Release what the backend holds."""

    async def aclose(self) -> None:
        """`close` for an event loop."""


def messages(
    request: TaskRequest, show: Callable[[Picture], dict[str, Any]], image_token: str | None
) -> list[dict[str, Any]]:
    """Return the conversation of a request as OpenAI's message objects.

    `show` makes a content part of an image. If there is text before an image, the images come first and `image_token`
    marks their places in the text, as the official code has it; without a token, texts and images alternate.
    """
    parts = request.parts
    images = [part for part in parts if isinstance(part, Picture)]
    if image_token is None or not any(isinstance(part, str) for part in parts[: len(images)]):
        content = [_text(part) if isinstance(part, str) else show(part) for part in parts]
    else:
        text = "".join(part if isinstance(part, str) else image_token for part in parts)
        content = [*map(show, images), _text(text)]
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    return [*system, {"role": "user", "content": content}]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


async def together(work: Iterable[Awaitable[_T]]) -> list[_T]:
    """Return the results of coroutines in their order. The first error is raised once the others have been ended."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
