"""What of the API is deprecated: one table, from which headers, the log and `/openapi.json` follow.

Answers to requests that use it have the headers `Deprecation` (RFC 9745) and `Sunset` (RFC 8594).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import format_datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ternvl.server.metrics.middleware import ENDPOINT

logger = logging.getLogger("ternvl.server")

DEPRECATED = "x-ternvl-deprecated"
"""The header that names what is deprecated."""
HEADERS = ("Deprecation", "Sunset", DEPRECATED)
_USE = "ternvl.deprecation"
"""The key of an ASGI scope for what the request uses."""


@dataclass(frozen=True, slots=True)
class Deprecation:
    """An endpoint, or a field of its request, that will be removed."""

    path: str
    """The path of the endpoint in the list of operations."""
    since: date
    """The day of the release that deprecates it."""
    sunset: date
    """The day before which it is not removed."""
    instead: str
    """What to use instead, as the end of a sentence: "use max_completion_tokens"."""
    field: str = ""
    """The name of a field of the request's body; empty for the whole endpoint."""

    @property
    def name(self) -> str:
        """What is deprecated, as the header names it."""
        return f"{self.path}#{self.field}" if self.field else self.path


DEPRECATIONS: tuple[Deprecation, ...] = ()
"""The table. `docs/support.md` says how long a row stays before what it names may be removed."""


@dataclass(slots=True)
class _Use:
    """The rows for one endpoint, and those of them that one request uses."""

    rows: Sequence[Deprecation]
    used: list[Deprecation] = field(default_factory=list)


class Deprecating:
    """ASGI middleware that adds the headers to answers, and logs the first use of each row."""

    def __init__(self, app: ASGIApp, rows: Iterable[Deprecation]) -> None:
        self._app = app
        self._rows = tuple(rows)
        self._logged: set[Deprecation] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the headers to its answer if it uses what is deprecated."""
        rows = [row for row in self._rows if row.path == scope.get(ENDPOINT)]
        if scope["type"] != "http" or not rows:
            return await self._app(scope, receive, send)
        use = scope[_USE] = _Use(rows, [row for row in rows if not row.field])

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start" and use.used:
                MutableHeaders(scope=message).update(headers(use.used))
                self._log(use.used)
            await send(message)

        await self._app(scope, receive, marked)

    def _log(self, used: Iterable[Deprecation]) -> None:
        for row in used:
            if row not in self._logged:
                self._logged.add(row)
                logger.warning(
                    "A request uses %s, which is deprecated until %s: %s.", row.name, row.sunset, row.instead
                )


def note_fields(scope: MutableMapping[str, Any], body: Any) -> None:
    """Note which deprecated fields a request's body has, for the headers of its answer."""
    use: _Use | None = scope.get(_USE)
    if use is not None and isinstance(body, Mapping):
        use.used += [row for row in use.rows if row.field and body.get(row.field) is not None]


def headers(used: Sequence[Deprecation]) -> dict[str, str]:
    """Return the headers for rows: the earliest days, and all names."""
    since, sunset = (_midnight(min(days)) for days in zip(*((row.since, row.sunset) for row in used), strict=True))
    values = (f"@{int(since.timestamp())}", format_datetime(sunset, usegmt=True), ", ".join(row.name for row in used))
    return dict(zip(HEADERS, values, strict=True))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
