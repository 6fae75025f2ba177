"""The description of one endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from ternvl.server.errors import Endpoint

JSON = "application/json"


@dataclass(frozen=True)
class Operation:
    """One row of the list of endpoints."""

    method: Literal["get", "post"]
    path: str
    endpoint: Endpoint
    summary: str
    """One sentence for the documentation."""
    request: type[BaseModel] | None = None
    """The schema of the request's body; None for a GET request."""
    answer: Any = None
    """The type of the answer, one of `docs/answers.py`; None for an answer of another media type than JSON."""
    streams: bool = False
    """Whether the answer may be a stream of server-sent events."""
    access: Literal["open", "key", "metrics", "admin"] = "key"
    """The key that a request needs, if the server has keys."""
    error_shape: Literal["openai", "anthropic"] = "openai"
    """The protocol that defines the shape of errors."""
    media_type: str = JSON
    """The media type of the answer."""
    also: str | None = None
    """Another media type that the answer may have, as its parameters say."""
    parameters: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """The parameters of the query, in the words of OpenAPI."""
    takes: str = JSON
    """The media type of the request's body."""

    @property
    def name(self) -> str:
        """The method and the path, such as "GET /health"."""
        return f"{self.method.upper()} {self.path}"
