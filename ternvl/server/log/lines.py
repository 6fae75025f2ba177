"""The log of a process: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

FORMATS = ("text", "json")
"""The values of `ServerConfig.log_format`."""

FIELDS = "fields"
"""The attribute of a log record that has further fields, for `logger.info(..., extra={FIELDS: {...}})`."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered; empty outside of a request."""


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, FIELDS, {}))


def handler(form: str, stream: TextIO | None = None) -> logging.Handler:
    """Return what writes records in a form of `FORMATS`, by default to standard error."""
    made = logging.StreamHandler(stream)
    text = logging.Formatter("%(levelname)s %(name)s: %(message)s")
    made.setFormatter(JSONFormatter() if form == "json" else text)
    return made


def configure(level: str, form: str) -> None:
    """Let the process log from a level on, in a form of `FORMATS`, unless it logs somewhere already."""
    logging.basicConfig(level=level.upper(), handlers=[handler(form)])
