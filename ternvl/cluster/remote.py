"""An answer as the ingress receives it from a replica."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from ternvl.cluster.exchange import REPLICA, ForwardedRequest, Message
from ternvl.cluster.failures import gone
from ternvl.errors import OverloadedError


class RemoteAnswer:
    """The answer of one replica. An answer that is no stream of events begins once it is whole."""

    def __init__(self, handle: DeploymentHandle, request: ForwardedRequest) -> None:
        """`handle` leads to the method of the replicas that answers."""
        self.head: Message = {}
        """The message with the status and the headers."""
        self.replica = ""
        self._handle, self._request = handle, request
        self._messages: AsyncGenerator[Message] = self._received()
        self._waiting: list[Message] = []

    @property
    def status(self) -> int:
        """The HTTP status, once the answer has begun."""
        return int(self.head["status"])

    async def begin(self) -> None:
        """Wait until the answer begins. Raises UnavailableError if the replica ends before, and OverloadedError.

        Unless it returns, nothing is left of the request in the replica.
        """
        try:
            self.head = await anext(self._messages)
            self.replica = self.head.pop(REPLICA)
            # Serve's proxy returns the id of the request, which it has also sent to the replica.
            self.head["headers"] = [each for each in self.head["headers"] if each[0] != b"x-request-id"]
            if not _is_stream(self.head):
                self._waiting = [message async for message in self._messages]
        except BaseException:
            await self.aclose()
            raise

    async def rest(self) -> AsyncGenerator[Message]:
        """Yield the messages after the head. Raises UnavailableError if the replica ends before the answer does."""
        for message in self._waiting:
            yield message
        async for message in self._messages:
            yield message

    async def aclose(self) -> None:
        """End the work in the replica, if it has not ended."""
        await self._messages.aclose()

    async def _received(self) -> AsyncGenerator[Message]:
        response: Any = None
        has_ended = False
        try:
            response = self._handle.remote(self._request)
            async for messages in response:
                for message in messages:
                    has_ended = message["type"] == "http.response.body" and not message.get("more_body")
                    yield message
            if not has_ended:
                raise gone("it broke its answer off")
        except BackPressureError:
            raise OverloadedError("All replicas have as many requests as they may have.", retry_after=5) from None
        except DeploymentUnavailableError as error:
            raise gone(error.message) from None
        except (RayError, RayServeException) as error:
            raise gone(_first_line(error)) from None
        finally:
            if response is not None and not has_ended:
                response.cancel()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _is_stream(head: Message) -> bool:
    headers = dict(head.get("headers", ()))
    return bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))
