"""Values drawn from a JSON Schema: what the page's schema uses of draft-07, and no more."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_KNOWN = {
    "$schema", "$ref", "components", "const", "default", "description", "enum", "format", "items", "maximum",
    "minimum", "minItems", "minLength", "not", "oneOf", "properties", "required", "type",
}  # fmt: skip

_scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=5)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
)


def values_of(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that `schema`, a part of `root`, allows. A keyword that is not known is an error of the test."""
    assert schema.keys() <= _KNOWN, schema.keys() - _KNOWN
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return st.deferred(lambda: values_of(root["components"]["schemas"][name], root))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if "oneOf" in schema:
        return st.one_of(*(values_of(branch, root) for branch in schema["oneOf"]))
    return _typed(schema, root)


def _typed(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum"), schema.get("maximum")
    match schema["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=20)
        case "integer":
            integers = st.integers(low, high)
            return integers | integers.filter(lambda value: abs(value) < 2**50).map(float)
        case "number":
            return st.floats(low, high, allow_nan=False) | st.sampled_from([low, high])
        case "array":
            return st.lists(values_of(schema["items"], root), min_size=schema.get("minItems", 0), max_size=3)
    return _objects(schema, root)


def _objects(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[Any]:
    """With all that is required, some of the rest, and at times what no one knows."""
    fields = {name: values_of(part, root) for name, part in schema.get("properties", {}).items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    known = st.fixed_dictionaries(required, optional=fields)
    return st.tuples(known, st.dictionaries(st.sampled_from(["x", "y z", "ü"]), _json, max_size=1)).map(
        lambda pair: pair[1] | pair[0]
    )
