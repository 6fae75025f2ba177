"""uvicorn's HTTP protocol with strict heads, a time limit for each head, and a limit on connections."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ternvl.config import ServerConfig
from ternvl.server.connection.limits import Connections
from ternvl.server.connection.lingering import SECONDS as LINGERING_SECONDS
from ternvl.server.connection.strict import StrictConnection

logger = logging.getLogger("ternvl.server")


def protocol_of(config: ServerConfig, connections: Connections) -> Any:
    """Return what makes the protocols of a server's connections, for `uvicorn.Config(http=...)`."""
    return partial(_Protocol, connections, config.head_timeout)


class _Protocol(H11Protocol):
    conn: StrictConnection

    def __init__(self, connections: Connections, head_timeout: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = StrictConnection()
        self.address = ""
        self._all, self._head_timeout = connections, head_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._is_discarding = False

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, of which no byte has arrived."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and self.conn.awaits_head and not self.conn.has_part_of_head

    def end(self) -> None:
        """Close the connection without an answer."""
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if reason := self._all.add(self):
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, reason)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._is_discarding:
            return
        try:
            super().data_received(data)
        except MemoryError:
            logger.error("The system has no more memory for a request that arrives from %s: MemoryError", self.address)
            return self._discard()
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Answer a request whose form is refused, and close the connection. uvicorn calls it."""
        error = self.conn.error
        self._refuse(HTTPStatus(error.error_status_hint) if error else HTTPStatus.BAD_REQUEST, str(error or msg))

    def _watch_head(self) -> None:
        """Begin to wait for a head, unless no byte of it is there after an answer: uvicorn has a timer for that."""
        is_waited_for = self.conn.awaits_head and (self.cycle is None or self.conn.has_part_of_head)
        if not is_waited_for or self.transport.is_closing():
            return self._stop_watching()
        if self._timer is None:
            self._timer = self.loop.call_later(self._head_timeout, self._give_up)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.conn.has_part_of_head:
            message = f"The head of a request must arrive within {self._head_timeout:g} s."
            return self._refuse(HTTPStatus.REQUEST_TIMEOUT, message)
        self.end()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Write an answer without the application, unless another one has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE, h11.ERROR) and not self._is_answering:
            self.transport.write(_answer(status, message))
        self.transport.close()

    def _discard(self) -> None:
        """Give up a request for which there is no memory, and read the rest of it so that the client gets the answer.

        A connection that is closed while there is something to read is reset, and the answer is lost.
        """
        self._is_discarding = True
        self._stop_watching()
        is_answering = self._is_answering
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.conn = StrictConnection()  # the old one has what has arrived
        if is_answering:
            return self.transport.close()
        self.flow.resume_reading()
        self.transport.write(_answer(HTTPStatus.SERVICE_UNAVAILABLE, "The server has no more memory for this request."))
        self.loop.call_later(LINGERING_SECONDS, self.transport.close)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete


def _answer(status: HTTPStatus, message: str) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    more = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    return f"{head}{more}content-length: {len(body)}\r\n\r\n".encode() + body
