"""Which fields of a request are served, and what becomes of the others.

A field that is documented (here, by OpenAI or by vLLM) is served or refused, never accepted and then ignored. A field
that no one defines is accepted and reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from ternvl.errors import RequestError
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.schema.types import REFUSED, TAG_MARK, Schema

T = TypeVar("T", bound=Schema)

UNSUPPORTED = "unsupported_parameter"

SERVED_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "documents": (),
    "echo": (False,),
    "function_call": (),
    "functions": (),
    "include_reasoning": (True,),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
"""Documented fields of which only some values are served: those that ask for what happens anyway."""


def served_values_without(*names: str, **values: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """`SERVED_VALUES` of a schema that has fields `names` of its own, and some more `values`."""
    return {name: served for name, served in SERVED_VALUES.items() if name not in names} | values


NEVER_SERVED = ("chat_template", "chat_template_kwargs")
"""A chat template is code."""

_NO_EFFECT = frozenset({"safety_identifier", "prompt_cache_key"})
"""Labels of a request, like `user` and `metadata`: nothing of the answer depends on them."""

_LENGTHS = {
    "too_short": "has fewer than the {min_length} that are needed",
    "too_long": "has more than the {max_length} that are allowed",
}
_RULES = _LENGTHS | {
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "string_type": "must be a string",
    "bool_type": "must be a boolean",
    "int_type": "must be an integer",
    "float_type": "must be a number",
}
"""What pydantic calls by Python's names, in JSON's."""

_KEY = "[key]"
"""Ends pydantic's path of an object's key that breaks a rule."""

_MAX_HEADER = 1_000
_MAX_PATH = 200


def parse_chat(body: Any, *, strict: bool = False) -> tuple[ChatRequest, list[str]]:
    """`parse` for Chat Completions."""
    return parse(ChatRequest, body, strict=strict)


def parse(
    schema: type[T], body: Any, *, strict: bool = False, served_values: Mapping[str, tuple[Any, ...]] = SERVED_VALUES
) -> tuple[T, list[str]]:
    """The request in a decoded JSON body, and the paths of fields that no one defines.

    `served_values` are documented fields that the schema lacks, with the values that ask for nothing. Raises
    RequestError, naming the field: for what the schema forbids, for documented fields that are not served (code
    "unsupported_parameter"), and with `strict` for unknown fields.
    """
    if not isinstance(body, dict):
        raise RequestError(f"The request body must be a JSON object, not {_kind(body)}.")
    _check_served(body, served_values)
    try:
        request = schema.model_validate(body)
    except ValidationError as error:
        raise _request_error(error) from None
    known = served_values.keys() | _NO_EFFECT
    ignored = [path for path in _unknown_fields(request, "") if path not in known]
    if ignored and strict:
        path = _path([ignored[0]])
        raise RequestError(f"Unknown field {path}; the server is strict.", param=path, code="unknown_field")
    return request, ignored


def ignored_header(paths: list[str]) -> str:
    """Value of `x-ternvl-ignored-fields`: percent-encoded paths, comma-separated, cut at about 1,000 characters."""
    value = ""
    for path in paths:
        encoded = quote(path, safe=".[]")
        if len(value) + len(encoded) > _MAX_HEADER:
            return value + ",..."
        value += "," * bool(value) + encoded
    return value


def _check_served(body: Mapping[str, Any], served_values: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in body.items():
        if value is None:
            continue
        if name in NEVER_SERVED:
            raise RequestError(f"{name} is refused: a chat template is code.", param=name, code=UNSUPPORTED)
        values = served_values.get(name)
        if values is not None and not any(_same_json(value, served) for served in values):
            served = ", ".join(json.dumps(v) for v in values)
            hint = f"; supported: {served}" if served else ""
            raise RequestError(
                f"{name} is {_shown(value)}, which is not supported yet{hint}.", param=name, code=UNSUPPORTED
            )


def _same_json(value: Any, served: Any) -> bool:
    """Equal as JSON has it: 1.0 is 1, true is not."""
    return isinstance(value, bool) == isinstance(served, bool) and bool(value == served)


def _request_error(error: ValidationError) -> RequestError:
    """The first violation as one sentence that begins with the field's path."""
    first = error.errors(include_url=False)[0]
    field = first["type"].removeprefix(REFUSED) if first["type"].startswith(REFUSED) else ""
    parts = [part for part in first["loc"] if not str(part).startswith(TAG_MARK) and part != _KEY]
    path = _path([*parts, field] if field else parts)
    if first["type"] == "missing":
        return RequestError(f"{path} is required.", param=path, code="missing_required_parameter")
    rule = _RULES.get(first["type"], first["msg"].replace("Input should be", "must be"))
    message = rule.format_map(first.get("ctx", {})) if first["type"] in _RULES else rule
    shown = "" if first["type"].startswith(REFUSED) or first["type"] in _LENGTHS else f", not {_shown(first['input'])}"
    code = first.get("ctx", {}).get("code") or "invalid_value"
    return RequestError(f"{path} {message}{shown}.", param=path, code=code)


def _path(parts: list[int | str]) -> str:
    """("messages", 0, "content") as `messages[0].content`; cut where a client's own names are long."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(path)}{part}"
    return path if len(path) <= _MAX_PATH else path[: _MAX_PATH - 3] + "..."


def _unknown_fields(value: Any, path: str) -> Iterator[str]:
    """Paths of fields with a value that no schema names, in a validated request. Tools are the model's to read."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_fields(item, f"{path}[{index}]")
    elif isinstance(value, BaseModel):
        prefix = f"{path}." if path else ""
        yield from (prefix + name for name, extra in (value.model_extra or {}).items() if extra is not None)
        for name in type(value).model_fields.keys() - {"tools"}:
            yield from _unknown_fields(getattr(value, name), prefix + name)


def _kind(value: Any) -> str:
    kinds = {str: "a string", list: "an array", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null" if value is None else "an object")


def _shown(value: Any) -> str:
    """A value in a message: short ones as JSON, others by their kind."""
    if isinstance(value, str | int | float | bool):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "..."
    return _kind(value)
