"""Parses requests: names the field that breaks a rule, refuses documented fields that are not served (`known.py`),
and reports fields that have no effect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from ternvl.errors import RequestError
from ternvl.server.schema.known import CACHE_ADVICE, KNOWN_FIELDS, LABELS
from ternvl.server.schema.types import REFUSED, TAG_MARK, UNSUPPORTED, Schema

T = TypeVar("T", bound=Schema)

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
    """Return the request of a decoded JSON body, and the paths of its fields that have no effect, as unknown ones.

    Raises RequestError, which names the field, for a value that the schema forbids, for a documented field that is not
    served (code "unsupported_parameter") and, with `strict`, for a field that has no effect.
    """
    if not isinstance(body, dict):
        raise RequestError(f"The request body must be a JSON object, not {_kind(body)}.")
    known = known_values(protocol, schema)
    _check_known(body, known)
    request = validate(schema, body)
    ignored = [path for path in _ignored_fields(request, "") if path not in known.keys() | LABELS]
    ignored = [path for path in ignored if path.rpartition(".")[2] not in CACHE_ADVICE]
    if ignored and strict:
        path = _path([ignored[0]])
        message = f"{path} is unknown or has no effect here, which this server refuses."
        raise RequestError(message, param=path, code="unknown_field")
    return request, ignored


def validate(schema: type[T], value: Any) -> T:
    """Return the schema's object of a JSON value. Raises RequestError, which names the field that breaks a rule."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _request_error(error) from None


def ignored_header(paths: list[str]) -> str:
    """Return the value of a header such as `x-ternvl-ignored-fields`: percent-encoded paths, about 1,000 characters."""
    value = ""
    for path in paths:
        encoded = quote(path, safe=".[]:")
        if len(value) + len(encoded) > _MAX_HEADER:
            return value + ",..."
        value += "," * bool(value) + encoded
    return value


def _check_known(body: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in body.items():
        if value is None:
            continue
        values = known.get(name)
        if values is not None and not any(_is_within(value, accepted) for accepted in values):
            reason = "is refused, because a chat template is code" if name.startswith("chat_template") else ""
            shown = ", ".join(json.dumps(each) for each in values)
            hint = f"; supported: {shown}" if shown else ""
            message = f"{name} {reason or f'is {_shown(value)}, which is not supported here'}{hint}."
            raise RequestError(message, param=name, code=UNSUPPORTED)


def _is_within(value: Any, accepted: Any) -> bool:
    """Return whether a value is equal to `accepted` in JSON, where 1.0 equals 1 but true does not.

    An object may lack keys of `accepted`, and a key may be null.
    """
    if isinstance(value, dict) and isinstance(accepted, dict):
        given = {name: item for name, item in value.items() if item is not None}
        return all(name in accepted and _is_within(item, accepted[name]) for name, item in given.items())
    return isinstance(value, bool) == isinstance(accepted, bool) and bool(value == accepted)


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


def _ignored_fields(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of the fields of a validated request that have no effect."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _ignored_fields(item, f"{path}[{index}]")
    elif isinstance(value, Schema):
        prefix = f"{path}." if path else ""
        yield from (prefix + name for name in value.ignored())
        for name in type(value).model_fields:
            yield from _ignored_fields(getattr(value, name), prefix + name)


def _kind(value: Any) -> str:
    kinds = {str: "a string", list: "an array", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null" if value is None else "an object")


def _shown(value: Any) -> str:
    """Return a value as messages show it: a string, number or boolean as JSON, any other value as its kind."""
    if isinstance(value, str | int | float | bool):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "..."
    return _kind(value)
