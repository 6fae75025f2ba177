"""A server with OpenAI's Chat Completions as the backend of tasks."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

import httpx

from ternvl.errors import ConfigError, RequestError, TaskError
from ternvl.tasks.pictures import Picture
from ternvl.tasks.requests import Reply, TaskRequest, messages, together

_TIMEOUT = httpx.Timeout(None, connect=10.0)  # long answers and long queues are not failures
_AT_ONCE = 8
_TRIES = 4
_BUSY = (429, 503)
_LONGEST_WAIT = 30.0
_THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class ServerBackend:
    """Asks a server. One that is busy (429, 503) is asked again after the time that it names."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        image_token: str | None = "<image>",
    ) -> None:
        """`base_url` is OpenAI's, such as http://127.0.0.1:8000/v1. Raises ConfigError for anything else."""
        self._model, self._image_token = model, image_token
        headers = {b"Content-Type": b"application/json"}
        if api_key is not None:
            headers[b"Authorization"] = b"Bearer " + api_key.encode()
        url = _checked(base_url)
        trust = _ssl_context() if url.scheme == "https" else False  # making one takes a third of a second
        self._settings: dict[str, Any] = {"base_url": url, "headers": headers, "verify": trust, "timeout": _TIMEOUT}
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._async_client: httpx.AsyncClient | None = None

    def answer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        """Answer requests, at most eight at a time. Raises TaskError."""
        with self._lock:
            client = self._client = self._client or httpx.Client(**self._settings)
        if len(requests) == 1:
            return [self._ask(client, requests[0])]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="task") as pool:
            return list(pool.map(lambda request: self._ask(client, request), requests))

    async def aanswer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        """`answer` for an event loop. All calls must be made on the same one."""
        self._async_client = self._async_client or httpx.AsyncClient(**self._settings)
        client, gate = self._async_client, asyncio.Semaphore(_AT_ONCE)
        return await together(self._ask_async(client, request, gate) for request in requests)

    def base_model(self) -> str | None:
        """Return the name of the model that answers, or that its adapter belongs to; None if the server lists none.

        Raises TaskError if the server cannot be reached.
        """
        try:
            with httpx.Client(**self._settings | {"timeout": 10.0}) as client:
                listed = client.get("models").json()["data"]
            entry = next(each for each in listed if self._model in (None, each["id"]))
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        except (ValueError, RecursionError, LookupError, TypeError, StopIteration):
            return None
        name = entry.get("parent") or entry["id"]
        return name if isinstance(name, str) else None

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def aclose(self) -> None:
        """Close the connections of the event loop."""
        if self._async_client is not None:
            await self._async_client.aclose()
            self._async_client = None

    def _ask(self, client: httpx.Client, request: TaskRequest) -> Reply:
        body = self._body(request)
        for tried in range(1, _TRIES + 1):
            try:
                response = client.post("chat/completions", content=body)
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
            if response.status_code not in _BUSY or tried == _TRIES:
                break
            time.sleep(_wait(response, tried))
        return _reply(response)

    async def _ask_async(self, client: httpx.AsyncClient, request: TaskRequest, gate: asyncio.Semaphore) -> Reply:
        async with gate:
            body = await asyncio.to_thread(self._body, request)
            for tried in range(1, _TRIES + 1):
                try:
                    response = await client.post("chat/completions", content=body)
                except httpx.HTTPError as error:
                    raise _unreachable(error) from error
                if response.status_code not in _BUSY or tried == _TRIES:
                    break
                await asyncio.sleep(_wait(response, tried))
        return _reply(response)

    def _body(self, request: TaskRequest) -> bytes:
        def show(picture: Picture) -> dict[str, Any]:
            tiles = {} if request.max_tiles is None else {"max_dynamic_patch": request.max_tiles}
            return {"type": "image_url", "image_url": {"url": picture.url, **tiles}}

        body: dict[str, Any] = {
            "messages": messages(request, show, self._image_token),
            "temperature": 0,
            "max_tokens": request.max_tokens,
        }
        if self._model is not None:
            body["model"] = self._model
        if request.schema is not None:
            form = {"name": "answer", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return _encoded(body)


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _checked(base_url: str) -> httpx.URL:
    with suppress(httpx.InvalidURL, TypeError):
        url = httpx.URL(base_url)
        if url.scheme in ("http", "https") and url.host:
            return url
    raise ConfigError(f"The address of the server is {base_url!r}, but must be an http or https URL.")


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"The schema cannot be written as JSON: {error}.", param="schema") from error


def _wait(response: httpx.Response, tried: int) -> float:
    """Return the seconds until a busy server is asked again."""
    with suppress(ValueError):
        return min(max(float(response.headers.get("retry-after", "")), 0.0), _LONGEST_WAIT)
    return float(2 ** (tried - 1))


def _unreachable(error: httpx.HTTPError) -> TaskError:
    return TaskError(
        f"The server could not be reached: {str(error) or type(error).__name__}. Start it with `ternvl serve`, or "
        "check its address."
    )


def _reply(response: httpx.Response) -> Reply:
    """Return what a server answered. Raises TaskError for an error, and for a body that is no answer."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if not response.is_success:
        raise TaskError(_message(response.status_code, body), status=response.status_code)
    try:
        choice = body["choices"][0]
        content, is_cut = choice["message"].get("content"), choice.get("finish_reason") == "length"
    except (TypeError, KeyError, IndexError, AttributeError):
        content, is_cut = None, False
    if not isinstance(content, str):
        raise TaskError("The server's answer has no text.", status=response.status_code)
    return Reply(_THINKING.sub("", content), is_cut)


def _message(status: int, body: object) -> str:
    error = body.get("error") if isinstance(body, Mapping) else None
    text = error.get("message") if isinstance(error, Mapping) else None
    return f"The server answered with status {status}" + (f": {text}" if isinstance(text, str) else ".")
