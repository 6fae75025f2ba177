"""Asks the requests of a batch, many at once, and records the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from ternvl.cli.batch.requests import BatchLine, BatchRequest
from ternvl.cli.batch.results import answered, failed
from ternvl.errors import TernvlError
from ternvl.tasks.requests import together
from ternvl.types import Progress

_BUSY = (429, 502, 503)
_REFUSED = (401, 403)
"""Statuses that would meet all requests."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""The seconds before each new try of a request that a server was too busy for, or whose connection broke."""
_LONGEST_WAIT = 60.0


class RequestSource(Protocol):
    """Where the requests of lines are, such as a `RequestFile`."""

    def request(self, line: BatchLine) -> BatchRequest:
        """Return what a line asks."""


class ResultSink(Protocol):
    """Where the lines of answers go, such as `Results`."""

    @property
    def num_added(self) -> int:
        """The lines that were added."""

    @property
    def done(self) -> Mapping[str, bool]:
        """The ids that have a line."""

    def add(self, result: dict[str, Any]) -> None:
        """Add a line."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A run over the lines that have no answer yet."""

    client: httpx.AsyncClient
    requests: RequestSource
    results: ResultSink
    concurrency: int
    waits: Sequence[float] = WAITS

    async def run(self, lines: Sequence[BatchLine], progress: Progress) -> None:
        """Ask lines and record their answers, in the order in which they come.

        Raises TernvlError if the server cannot be reached or refuses all requests, and if an answer cannot be written.
        """
        waiting = iter(lines)
        done, total = len(self.results.done), len(self.results.done) + len(lines)

        async def work(waiting: Iterable[BatchLine]) -> None:
            nonlocal done
            for line in waiting:
                self.results.add(await self._answer(line))
                done += 1
                progress(done, total)

        progress(done, total)
        async with self.client:
            await together(work(waiting) for _ in range(min(self.concurrency, len(lines))))

    async def _answer(self, line: BatchLine) -> dict[str, Any]:
        assert line.custom_id is not None
        response = await self._response(line)
        if response.status_code in _REFUSED:
            raise TernvlError(f"The server refuses the requests with status {response.status_code}: {_said(response)}")
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError):
            text = f"The answer with status {response.status_code} is not JSON: {response.text[:200]!r}."
            return failed(line.id, line.custom_id, "invalid_response", text)
        request_id = response.headers.get("x-request-id", "")
        return answered(line.id, line.custom_id, response.status_code, request_id, body)

    async def _response(self, line: BatchLine) -> httpx.Response:
        """Return the response. A server that is busy or gone is asked again, in longer and longer intervals.

        As long as other lines are answered meanwhile, the tries begin anew.
        """
        request = self.requests.request(line)
        num_tries, num_added = 0, self.results.num_added
        while True:
            response, fault = await self._try(request)
            if response is not None and not fault:
                return response
            if self.results.num_added > num_added:
                num_tries, num_added = 0, self.results.num_added
            if num_tries == len(self.waits):
                raise TernvlError(fault)
            await asyncio.sleep(max(self.waits[num_tries], _retry_after(response)))
            num_tries += 1

    async def _try(self, request: BatchRequest) -> tuple[httpx.Response | None, str]:
        """Return the response, if there is one, and why it is no answer; an empty text if it is one."""
        try:
            response = await self.client.post(request.url, content=request.body)
        except httpx.RequestError as error:
            reason = str(error) or type(error).__name__
            return None, f"The server at {self.client.base_url} cannot be reached: {reason}."
        if response.status_code in _BUSY:
            return response, f"The server is too busy, with status {response.status_code}: {_said(response)}"
        return response, ""


def _retry_after(response: httpx.Response | None) -> float:
    """Return the seconds that a response asks to wait; 0 if it does not say."""
    if response is None:
        return 0.0
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), _LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return response.text[:200].strip() or "it gives no reason."
