"""Answers in JSON: the schema that is asked for, and the value that is checked against it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jsonschema import SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from ternvl.errors import RequestError, UnparsableAnswer

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


def form_of(schema: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """Return the JSON Schema of a schema or a pydantic model, and the function that parses an answer.

    The function returns a JSON value, or an object of the model, and raises UnparsableAnswer. Raises RequestError for
    anything else than a schema or a model.
    """
    if isinstance(schema, Mapping):
        validator = _validator(dict(schema))
        return dict(schema), lambda text: _valid(text, validator)
    if hasattr(schema, "model_json_schema") and hasattr(schema, "model_validate_json"):
        return schema.model_json_schema(), lambda text: _of_model(text, schema)
    kinds = "a JSON Schema or a pydantic model"
    raise RequestError(f"schema is a value of type {type(schema).__name__}, but must be {kinds}.", param="schema")


def _validator(schema: dict[str, Any]) -> Any:
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise RequestError(f"schema is not a JSON Schema: {error.message}.", param="schema") from error
    return kind(schema, registry=Registry())  # an empty registry, so that a "$ref" is never fetched


def _valid(text: str, validator: Any) -> Any:
    value = _json(text)
    try:
        validator.validate(value)
    except ValidationError as error:
        raise UnparsableAnswer(f"does not match the schema: at {error.json_path}, {error.message}", text) from None
    except Unresolvable as error:
        raise RequestError(f"schema refers to {error.ref!r}, which it does not contain.", param="schema") from error
    except RecursionError:
        raise UnparsableAnswer("is nested too deeply", text) from None
    return value


def _of_model(text: str, model: Any) -> Any:
    _json(text)
    try:
        return model.model_validate_json(_unfenced(text))
    except ValueError as error:  # pydantic's ValidationError is one
        raise UnparsableAnswer(f"does not match {model.__name__}: {error}", text) from None


def _json(text: str) -> Any:
    try:
        return json.loads(_unfenced(text), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise UnparsableAnswer("is not JSON", text) from None


def _unfenced(text: str) -> str:
    """Return an answer without the code fence that servers without structured output may put around it."""
    fenced = _FENCED.fullmatch(text)
    return fenced[1] if fenced else text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
