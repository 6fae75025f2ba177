"""Limits the requests of each key, and tells clients how much they have left in OpenAI's headers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.answer.delta import Delta
from ternvl.errors import OverloadedError, UnavailableError
from ternvl.server.errors import HTTPError
from ternvl.server.guard.caller import Caller, current
from ternvl.server.guard.quota import Use

HEADERS = tuple(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset"))
"""The headers of answers to keys with limits."""

_REFUSED = (429, 503)
"""The statuses of requests that cost nothing, because the server did not work on them."""


class RateLimited:
    """ASGI middleware that answers 429 once a key has sent as many requests as it may. Only POST requests count."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that the key may send."""
        caller = current.get()
        if scope["type"] != "http" or caller is None:
            return await self._app(scope, receive, send)
        answer = _Answer(caller, send)
        if scope["method"] == "POST":
            try:
                caller.check_requests()
            except HTTPError as error:
                return await error.response(scope)(scope, receive, answer.send)
            answer.use = caller.budget.requests.add(1)
        await self._app(scope, receive, answer.send)


class _Answer:
    """Sends an answer with the headers of its key's limits, and forgets a request that was refused."""

    def __init__(self, caller: Caller, send: Send) -> None:
        self.use: Use | None = None
        self._caller = caller
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.use is not None and message["status"] in _REFUSED:
                self._caller.budget.requests.take_back(self.use, 1)
            MutableHeaders(scope=message).update(dict(limit_headers(self._caller)))
        await self._send(message)


def limit_headers(caller: Caller) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the headers that say what a key may use, what is left, and when all of it is."""
    key, budget = caller.key, caller.budget
    if (limit := key.requests_per_minute) is not None:
        window = budget.requests
        yield from _headers("requests", limit, limit - window.used, window.seconds_until_empty)
    if (limit := key.tokens_per_minute) is not None:
        yield from _headers("tokens", limit, budget.tokens_left(limit), budget.tokens.seconds_until_empty)


def _headers(of: str, limit: int, left: int, seconds: float) -> Iterator[tuple[str, str]]:
    yield f"x-ratelimit-limit-{of}", str(limit)
    yield f"x-ratelimit-remaining-{of}", str(max(0, left))
    yield f"x-ratelimit-reset-{of}", f"{seconds:.3f}s"


async def charged(
    deltas: AsyncGenerator[Delta], num_prompt_tokens: int, most_answer_tokens: int
) -> AsyncGenerator[Delta]:
    """Yield the deltas and count their tokens against the key of the current request. Closing it closes `deltas`.

    Answers are charged for what is generated, also if they end early. A request that the engine refuses costs nothing.
    Raises what `Caller.reserve` raises before the first delta.
    """
    caller = current.get()
    async with aclosing(deltas):
        reservation = caller.reserve(num_prompt_tokens, most_answer_tokens) if caller else None
        try:
            async for delta in deltas:
                if reservation:
                    reservation.spend(delta.num_tokens)
                yield delta
        except (OverloadedError, UnavailableError):
            if reservation:
                reservation.cancel()
            raise
        finally:
            if reservation:
                reservation.end()
