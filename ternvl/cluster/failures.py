"""What clients are told when a replica fails: an error in the shape of their protocol, also within a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ternvl.cluster.exchange import Message
from ternvl.errors import UnavailableError
from ternvl.server.errors import ERROR_SHAPE, HTTPError, to_http
from ternvl.server.sse import event, named_event


def gone(reason: str) -> UnavailableError:
    """Return the error of a request whose replica has ended."""
    return UnavailableError(f"The replica that worked on this request has failed ({reason}); send the request again.")


def response_to(error: BaseException, scope: Mapping[str, Any]) -> Any:
    """Return the response to a request that failed before its answer began, in the shape of its protocol."""
    shape = "anthropic" if _noun(scope) == "messages" else "openai"
    return to_http(error).response({**scope, ERROR_SHAPE: shape})


class Stream:
    """What an answer has sent so far, as far as its last event depends on it."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._noun = _noun(scope)
        self._num_events = 0

    def count(self, message: Message) -> None:
        """Count the events of a message; no event holds an empty line."""
        self._num_events += message.get("body", b"").count(b"\n\n")

    def failure(self, error: BaseException) -> bytes:
        """Return the event that ends a stream which cannot go on, as one server would send it."""
        failed: HTTPError = to_http(error)
        if self._noun == "messages":
            return named_event(failed.anthropic_body)
        if self._noun == "responses":
            fields = {"code": failed.code, "message": failed.message, "param": failed.param}
            return named_event({"type": "error", "sequence_number": self._num_events, **fields})
        return event(failed.body)


def _noun(scope: Mapping[str, Any]) -> str:
    """Return what an endpoint answers with: the first part of its path after the version."""
    return str(scope["path"]).removeprefix("/v1").strip("/").partition("/")[0]
