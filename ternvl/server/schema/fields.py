"""Parses requests, and decides how fields that are not served are treated.

A documented field (by ternvl, OpenAI, Anthropic or vLLM) is served or refused; it is never accepted and then ignored.
An unknown field is accepted and reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from ternvl.errors import RequestError
from ternvl.server.schema.types import REFUSED, TAG_MARK, Schema

T = TypeVar("T", bound=Schema)

UNSUPPORTED = "unsupported_parameter"

OPENAI = ("chat", "completions", "responses", "tokens")
"""The protocols in which OpenAI's and vLLM's fields are known."""


@dataclass(frozen=True, slots=True)
class KnownField:
    """A documented field that is not served, except with the values that ask for the default behaviour."""

    name: str
    values: tuple[Any, ...] = ()
    protocols: Sequence[str] = OPENAI


KNOWN_FIELDS = (
    KnownField("add_special_tokens", (True, False), ("tokens",)),  # the tokenizer has no special tokens to add
    KnownField("audio"),
    KnownField("background", (False,), ("responses",)),
    KnownField("bad_words", ([],)),
    KnownField("best_of", (1,)),
    KnownField("container", (), ("messages",)),
    KnownField("context_management", (), ("messages",)),
    KnownField("conversation", (), ("responses",)),
    KnownField("documents"),
    KnownField("echo", (False,)),
    KnownField("function_call"),
    KnownField("functions"),
    KnownField("include", ([],), ("responses",)),
    KnownField("include_reasoning", (True,)),
    KnownField("length_penalty", (1,)),
    KnownField("load_inplace", (True,), ("adapters",)),
    KnownField("max_tool_calls", (), ("responses",)),
    KnownField("mcp_servers", ([],), ("messages",)),
    KnownField("modalities", (["text"],)),
    KnownField("n", (1,), ("responses",)),
    KnownField("output_format", (), ("messages",)),
    KnownField("prediction"),
    KnownField("previous_response_id", (), ("responses",)),
    KnownField("prompt", (), ("responses",)),
    KnownField("prompt_embeds", (), ("completions",)),
    KnownField("prompt_logprobs"),
    KnownField("reasoning", ({},), ("responses",)),
    KnownField("reasoning_effort"),
    KnownField("service_tier", ("auto", "default")),
    KnownField("service_tier", ("auto", "standard_only"), ("messages",)),
    KnownField("spaces_between_special_tokens", (True,)),
    KnownField("store", (False,)),
    KnownField("stream_options", ({}, {"include_obfuscation": False}), ("responses",)),
    KnownField("suffix", ("",), ("completions",)),
    KnownField("thinking", ({"type": "disabled"},), ("messages",)),
    KnownField("top_logprobs", (0,), ("responses",)),
    KnownField("truncate_prompt_tokens"),
    KnownField("truncation", ("disabled",), ("responses",)),
    KnownField("use_beam_search", (False,)),
    KnownField("verbosity"),
    KnownField("web_search_options"),
)
"""The table for all endpoints. A row does not apply to an endpoint whose schema defines the field."""

NEVER_SERVED = ("chat_template", "chat_template_kwargs")
"""Fields that are refused with any value, because a chat template is code."""

_NO_EFFECT = frozenset({"safety_identifier", "prompt_cache_key"})
"""Labels of a request, like `user` and `metadata`, that do not change the answer."""

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
"""Messages for pydantic's rules whose own messages name Python's types."""

_KEY = "[key]"
"""The last part of pydantic's path if the key of an object breaks a rule."""

_MAX_HEADER = 1_000
_MAX_PATH = 200


def known_values(protocol: str, schema: type[Schema]) -> dict[str, tuple[Any, ...]]:
    """Return the fields that a protocol documents and `schema` does not define, with the values that are accepted."""
    return {
        field.name: field.values
        for field in KNOWN_FIELDS
        if protocol in field.protocols and field.name not in schema.model_fields
    }


def parse(schema: type[T], body: Any, *, protocol: str, strict: bool = False) -> tuple[T, list[str]]:
    """Return the request of a decoded JSON body, and the paths of its unknown fields.

    Raises RequestError, which names the field, for a value that the schema forbids, for a documented field that is not
    served (code "unsupported_parameter") and, with `strict`, for an unknown field.
    """
    if not isinstance(body, dict):
        raise RequestError(f"The request body must be a JSON object, not {_kind(body)}.")
    known = known_values(protocol, schema)
    _check_known(body, known)
    try:
        request = schema.model_validate(body)
    except ValidationError as error:
        raise _request_error(error) from None
    ignored = [path for path in _unknown_fields(request, "") if path not in known.keys() | _NO_EFFECT]
    if ignored and strict:
        path = _path([ignored[0]])
        raise RequestError(f"{path} is an unknown field, which this server refuses.", param=path, code="unknown_field")
    return request, ignored


def ignored_header(paths: list[str]) -> str:
    """Return the value of `x-ternvl-ignored-fields`: percent-encoded paths, cut at about 1,000 characters."""
    value = ""
    for path in paths:
        encoded = quote(path, safe=".[]")
        if len(value) + len(encoded) > _MAX_HEADER:
            return value + ",..."
        value += "," * bool(value) + encoded
    return value


def _check_known(body: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in body.items():
        if value is None:
            continue
        if name in NEVER_SERVED:
            raise RequestError(f"{name} is refused: a chat template is code.", param=name, code=UNSUPPORTED)
        values = known.get(name)
        if values is not None and not any(_same_json(value, accepted) for accepted in values):
            shown = ", ".join(json.dumps(each) for each in values)
            hint = f"; supported: {shown}" if shown else ""
            raise RequestError(
                f"{name} is {_shown(value)}, which is not supported yet{hint}.", param=name, code=UNSUPPORTED
            )


def _same_json(value: Any, other: Any) -> bool:
    """Return whether two values are equal in JSON, where 1.0 equals 1 but true does not."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _request_error(error: ValidationError) -> RequestError:
    """Return the first violation as an error whose message begins with the field's path."""
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
    """Return a path such as `messages[0].content`, which is cut if the client's own names make it long."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(path)}{part}"
    return path if len(path) <= _MAX_PATH else path[: _MAX_PATH - 3] + "..."


def _unknown_fields(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of unknown fields of a validated request. The fields of tools are passed to the model."""
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
    """Return a value as messages show it: a string, number or boolean as JSON, any other value as its kind."""
    if isinstance(value, str | int | float | bool):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "..."
    return _kind(value)
