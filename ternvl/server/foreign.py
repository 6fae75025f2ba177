"""Requests of other protocols as Chat Completions: one validation, one way through, errors in their words."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ternvl.errors import RequestError
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.schema.fields import parse_chat

T = TypeVar("T")


@dataclass(frozen=True)
class Foreign:
    """A request as the body of Chat Completions."""

    body: dict[str, Any]
    origins: Sequence[str]
    """For each message the path of what it was made from."""
    names: Sequence[tuple[str, str]] = ()
    """Patterns of paths of Chat Completions, and what their beginning is called in the protocol."""

    def parse(self) -> ChatRequest:
        """The request. Raises RequestError in the protocol's words."""
        with self.in_their_words():
            return parse_chat(self.body)[0]

    async def worded(self, values: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """The values; the RequestErrors of their making in the protocol's words."""
        with self.in_their_words():
            async with aclosing(values):
                async for value in values:
                    yield value

    @contextmanager
    def in_their_words(self) -> Iterator[None]:
        """RequestErrors that are raised within name the protocol's own fields."""
        try:
            yield
        except RequestError as error:
            message = str(error)
            if error.param:
                renamed = self._renamed(error.param)
                message, error.param = message.replace(error.param, renamed), renamed
            error.args = (re.sub(r"\bmessages\[\d+\]", lambda match: self._renamed(match[0]), message),)
            raise

    def _renamed(self, path: str) -> str:
        turn = re.match(r"messages\[(\d+)\]", path)
        if turn and int(turn[1]) < len(self.origins):
            return self.origins[int(turn[1])] + path[turn.end() :]
        for pattern, name in self.names:
            if found := re.match(pattern, path):
                return found.expand(name) + path[found.end() :]
        return path
