"""What is known of one endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """The schema of the request's body."""
    streams: bool = False
    """Whether the answer may be a stream of server-sent events."""
    access: Literal["open", "key", "admin"] = "key"
    """Who may ask, if the server has keys."""
    error_shape: Literal["openai", "anthropic"] = "openai"
    media_type: str = JSON
    """Of the answer."""
    takes: str = JSON
    """The media type of the request's body."""

    @property
    def name(self) -> str:
        return f"{self.method.upper()} {self.path}"
