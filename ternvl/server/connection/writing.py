"""Sends answers to clients that may read slowly or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Send

from ternvl.server.errors import ClientGone

logger = logging.getLogger("ternvl.server")


class TimedResponse:
    """Sends an answer, and closes its connection if the server is stopping."""

    def __init__(self, send: Send, write_timeout: float, is_draining: Callable[[], bool]) -> None:
        """A message must be read within `write_timeout` seconds; `is_draining` says whether the server is stopping."""
        self.has_begun = False
        self._send, self._write_timeout, self._is_draining = send, write_timeout, is_draining
        self._since: float | None = None  # when the message began to be sent that is being sent
        self._sender: asyncio.Task[Any] | None = None  # the task that sends it
        self._is_late = False
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, message: Message) -> None:
        """Send a message. Raises ClientGone if the client does not read it within `write_timeout` seconds."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            if self._is_draining():
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        loop = asyncio.get_running_loop()
        self._since, self._sender = loop.time(), asyncio.current_task()
        if self._timer is None:
            self._timer = loop.call_later(self._write_timeout, self._look, loop)
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if not self._is_late or (self._sender is not None and self._sender.uncancel() > 0):
                raise
            logger.warning("a client did not read its answer for %g seconds", self._write_timeout)
            raise ClientGone from None
        finally:
            self._since = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """End a message that is late. One timer looks after all messages, because streams have one for each token."""
        now, longest = loop.time(), self._write_timeout
        due = (now if self._since is None else self._since) + longest
        if due <= now and self._sender is not None:
            self._is_late = True
            self._sender.cancel()
            return
        self._timer = loop.call_at(due, self._look, loop)

    def end(self) -> None:
        """Stop looking after messages."""
        if self._timer is not None:
            self._timer.cancel()
