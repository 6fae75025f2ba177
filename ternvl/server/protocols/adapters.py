"""`POST /v1/load_lora_adapter`, `/v1/unload_lora_adapter` and `/v1/upload_lora_adapter`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ternvl.config import ServerConfig
from ternvl.errors import AdapterError, RequestError, UnavailableError
from ternvl.lora.files import CONFIG, WEIGHTS
from ternvl.lora.pool import RegisteredAdapter
from ternvl.server.endpoint import read, serving_of
from ternvl.server.errors import HTTPError
from ternvl.server.guard.audit import DETAILS
from ternvl.server.guard.validate import is_loopback
from ternvl.server.schema.types import NonEmpty, Schema

logger = logging.getLogger("ternvl.server")

_FORM_BYTES = 100_000
"""The most bytes of an upload in addition to its files."""


class LoadRequest(Schema):
    """The body of `POST /v1/load_lora_adapter`: a folder on the server's machine that PEFT saved."""

    lora_name: NonEmpty
    lora_path: NonEmpty


class UnloadRequest(Schema):
    """The body of `POST /v1/unload_lora_adapter`.

    With `abort`, the requests that use the adapter are aborted; otherwise they run to their end first.
    """

    lora_name: NonEmpty
    abort: bool | None = None


class UploadForm(BaseModel):
    """The form of `POST /v1/upload_lora_adapter`, as `/openapi.json` describes it."""

    lora_name: str
    config: Annotated[bytes, Field(alias=CONFIG)]
    weights: Annotated[bytes, Field(alias=WEIGHTS)]


async def load(request: Request) -> Response:
    """Answer `POST /v1/load_lora_adapter`. An adapter with the same name is replaced for later requests."""
    _check_allowed(request)
    wanted, headers = await read(request, LoadRequest, "adapters")
    request.scope[DETAILS] |= {"lora_name": wanted.lora_name, "lora_path": wanted.lora_path}
    with _error_path("lora_path"):
        entry = await serving_of(request).adapters.load(wanted.lora_name, wanted.lora_path)
    return _loaded(request, entry, headers)


async def unload(request: Request) -> Response:
    """Answer `POST /v1/unload_lora_adapter`, once no request uses the adapter any more."""
    _check_allowed(request)
    wanted, headers = await read(request, UnloadRequest, "adapters")
    request.scope[DETAILS] |= {"lora_name": wanted.lora_name, "abort": bool(wanted.abort)}
    with _error_path("lora_name"):
        num_users = await serving_of(request).adapters.unload(wanted.lora_name, give_up=bool(wanted.abort))
    body = {"id": wanted.lora_name, "object": "model", "deleted": True}
    return JSONResponse(body | {"aborted" if wanted.abort else "waited_for": num_users}, headers=headers)


async def upload(request: Request) -> Response:
    """Answer `POST /v1/upload_lora_adapter`, whose body is a form with `lora_name` and the adapter's two files."""
    serving = serving_of(request)
    if not serving.config.allow_lora_upload:
        message = "This server accepts no uploads of adapters; start it with --allow-lora-upload to allow them."
        raise HTTPError(403, message, code="uploads_not_allowed")
    with _disk_errors():
        form = await _form(request, serving.config)
        try:
            name = form.get("lora_name")
            if not isinstance(name, str) or not name:
                raise RequestError("lora_name is required.", param="lora_name", code="missing_required_parameter")
            request.scope[DETAILS] |= {"lora_name": name}
            config, weights = _file(form, CONFIG), _file(form, WEIGHTS)
            entry = await serving.adapters.upload(name, config.file, weights.file)
        finally:
            await form.close()
    return _loaded(request, entry, {})


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn an error of the disk, where a form and its adapter are kept, into UnavailableError and a line of the log."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        logger.error("An uploaded adapter cannot be stored: %s (%s).", reason, error.filename or "no file named")
        raise UnavailableError(f"The upload cannot be stored: {reason}.") from None


@contextmanager
def _error_path(field: str) -> Iterator[None]:
    """Let errors of an adapter that name no field of the request name `field`."""
    try:
        yield
    except AdapterError as error:
        if error.param in (None, "lora"):
            error.param = field
        raise


def _loaded(request: Request, entry: RegisteredAdapter, headers: dict[str, str]) -> Response:
    return JSONResponse(serving_of(request).cards.of_adapter(entry), headers=headers)


def _check_allowed(request: Request) -> None:
    """Raise HTTPError 403 if the server has no admin key and listens on an address that other machines can reach.

    If there is an admin key, `guard/auth.py` has already checked that the request has it.
    """
    serving = serving_of(request)
    config = serving.config
    if not serving.keys.guards_admin and not is_loopback(config.host):
        message = (
            f"The server listens on {config.host}, where adapters can be loaded and unloaded only with --admin-key."
        )
        raise HTTPError(403, message, code="admin_key_needed")


async def _form(request: Request, config: ServerConfig) -> FormData:
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise HTTPError(415, f"The Content-Type is {media_type!r}, but an upload must be multipart/form-data.")
    limit = config.max_lora_bytes + _FORM_BYTES
    with _form_errors(config):
        async with asyncio.timeout(config.body_timeout):
            parser = MultiPartParser(request.headers, _limited(request, limit, config), max_files=2, max_fields=1)
            return await parser.parse()


@contextmanager
def _form_errors(config: ServerConfig) -> Iterator[None]:
    """Turn the errors of reading a form into HTTPError and RequestError."""
    try:
        yield
    except TimeoutError:
        raise HTTPError(408, f"The upload did not arrive within {config.body_timeout:g} seconds.") from None
    except ClientDisconnect:
        raise HTTPError(400, "The connection closed before the upload was complete.") from None
    except MultiPartException as error:
        raise RequestError(f"The form cannot be read: {error.message}") from None


async def _limited(request: Request, limit: int, config: ServerConfig) -> AsyncGenerator[bytes]:
    """Yield the bytes of the body. Raises HTTPError 413 for more than `limit` bytes."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            message = f"The upload is larger than the {config.max_lora_bytes} bytes that an adapter may have."
            raise HTTPError(413, message, code="request_too_large", headers={"Connection": "close"})
        yield chunk


def _file(form: FormData, name: str) -> UploadFile:
    """Return the file whose form field or file name is `name`."""
    uploads = [(field, value) for field, value in form.multi_items() if isinstance(value, UploadFile)]
    for field, value in uploads:
        if name in (field, value.filename):
            return value
    raise RequestError(f"The file {name} is missing from the upload.", param=name, code="adapter_file_missing")
