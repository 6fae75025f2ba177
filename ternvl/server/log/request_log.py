"""A line in the log for each request: what it took and what it got. Never its prompt, its answer, an image or a key."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from ternvl.server.log.lines import FIELDS
from ternvl.server.log.request_id import in_words

logger = logging.getLogger("ternvl.request")

QUIET = ("/health", "/ready", "/metrics")
"""Endpoints that machines ask again and again; their lines have the level debug."""


@dataclass
class Record:
    """What is known of a request by now."""

    model: str = ""
    """The name of the model or adapter that answers; the fields below are of answers alone."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    num_images: int = 0
    answer_tokens: int = 0
    queue_seconds: float = 0.0
    """Of the answer that waited longest."""
    first_token_seconds: float = 0.0
    """From the request to the first token of any answer."""
    finish_reasons: list[str] = field(default_factory=list)
    trace_id: str = ""
    """The id of the request's trace; empty if it is not traced."""

    def write(self, method: str, endpoint: str, status: int, seconds: float, key: str) -> None:
        """Write the line. `endpoint` is a path of the API, so no client can break the line with it."""
        level = logging.DEBUG if endpoint in QUIET else logging.INFO
        told: dict[str, Any] = {"method": method, "endpoint": endpoint, "status": status, "seconds": round(seconds, 4)}
        told |= {"key": key} if key else {}
        told |= _rounded(asdict(self)) if self.model else {"trace_id": self.trace_id}
        if not self.trace_id:
            del told["trace_id"]
        logger.log(level, "%s%s", self._words(told), in_words(), extra={FIELDS: told})

    def _words(self, told: dict[str, Any]) -> str:
        words = f"{told['method']} {told['endpoint']} {told['status']} in {told['seconds']:.3f} s"
        words += f", key {told['key']}" if "key" in told else ""
        if not self.model:
            return words
        reasons = ", ".join(sorted(set(self.finish_reasons)))
        return (
            f"{words}: {self.model!a}, {self.prompt_tokens} tokens in ({self.cached_tokens} cached, "
            f"{self.image_tokens} of {self.num_images} images), {self.answer_tokens} out, "
            f"queue {self.queue_seconds:.3f} s, first token {self.first_token_seconds:.3f} s, {reasons or 'no answer'}"
        )


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


current: ContextVar[Record | None] = ContextVar("record", default=None)
"""The record of the request that is being answered; None outside of a request."""
