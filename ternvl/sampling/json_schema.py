"""Checks a JSON Schema before llguidance compiles it.

Refused are rules that llguidance would accept but not enforce, schemas that no answer could ever fulfil, and schemas
that would take too long to compile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MAX_SUBSCHEMAS = 5_000
MAX_PROPERTIES = 1_000
"""Limit for one object. The time to compile grows with the square of the number."""
MAX_PATTERN_SIZE = 20_000
"""Limit for the length of a pattern with its repetitions written out."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_INLINE = {"whitespace_flexible": False, "item_separator": r",\x20?", "key_separator": r":\x20?"}
_PRETTY = {"whitespace_pattern": r"\x20|\x0A\x20{0,32}", "item_separator": ",", "key_separator": ":"}
_MAX_PASSES = 100
_ATOM = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(|\)|\{(?P<low>\d+)(?:,(?P<high>\d*))?\}|.", re.DOTALL)


class SchemaError(ValueError):
    """A schema that is not supported. The message continues a sentence that begins with the name of the field."""


def check(schema: Any) -> dict[str, Any]:
    """Return the schema as an object, {} for `true`. Raises SchemaError if it is not supported."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise SchemaError(
            "is a schema that no value fulfils" if schema is False else "must be a JSON Schema, an object"
        )
    nodes: list[dict[str, Any]] = []
    for node in _subschemas(schema):
        _check_node(node)
        nodes.append(node)
        if len(nodes) > MAX_SUBSCHEMAS:
            raise SchemaError(f"has more than the {MAX_SUBSCHEMAS} subschemas that are allowed")
    if not _has_finite_instance(schema, nodes):
        raise SchemaError("is recursive without an end, so no value of finite size fulfils it")
    return schema


def as_object(schema: Any) -> dict[str, Any]:
    """Return `schema` restricted to objects. Raises SchemaError if it allows no object."""
    checked = check({} if schema is None else schema)
    types = checked.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        raise SchemaError(f'has the type {json.dumps(types)[:60]}, but arguments are always an "object"')
    return {**checked, "type": "object"}


def options(*, inline: bool) -> dict[str, Any]:
    """Return llguidance's options, which a schema may not set.

    White space is bounded, so that a model cannot generate it without end. With `inline`, only a space after a comma or
    a colon is allowed, which is how models write calls; otherwise also line breaks with indentation. Since white space
    is optional, llguidance never writes it ahead, as it does with all text that a schema forces.

    llguidance would not recognise a property whose key is written with an escape, so `\\u` escapes are not allowed;
    characters are written as themselves.
    """
    return {
        **(_INLINE if inline else _PRETTY),
        "lenient": False,
        "coerce_one_of": False,
        "json_allowed_escapes": 'nrbtf\\"',
        "json_allow_general_unicode_escapes": False,
    }


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the schema and all its subschemas, in breadth-first order."""
    queue = [schema]
    for node in queue:
        if not isinstance(node, dict):
            continue
        yield node
        for name in _MAPS:
            if isinstance(node.get(name), dict):
                queue += node[name].values()
        for name in _LISTS:
            if isinstance(node.get(name), list):
                queue += node[name]
        queue += [node[name] for name in _SINGLE if name in node]


def _check_node(node: Mapping[str, Any]) -> None:
    if len(_mapping(node, "properties")) > MAX_PROPERTIES:
        raise SchemaError(f"has an object with more than the {MAX_PROPERTIES} properties that are allowed")
    least = node.get("minProperties", 0)
    if isinstance(least, int | float) and least > max(1, len(_list(node, "required"))):
        raise SchemaError("has minProperties above the number of required properties, which is not supported")
    patterns = [node.get("pattern"), *_mapping(node, "patternProperties")]
    if any(isinstance(pattern, str) and expanded_size(pattern) > MAX_PATTERN_SIZE for pattern in patterns):
        raise SchemaError(f"has a pattern of more than {MAX_PATTERN_SIZE} characters, its repetitions written out")


def expanded_size(regex: str) -> int:
    """Return about how many characters a regex has with its counted repetitions written out."""
    sizes, last = [0], 0  # sizes of the open groups, and of the atom that a repetition would repeat
    for match in _ATOM.finditer(regex):
        atom = match.group()
        if match["low"] is not None:
            more = last * (max(int(match["low"][:9]), int((match["high"] or "0")[:9])) - 1)
            sizes[-1] += max(0, more)
            last += max(0, more)
        elif atom == "(":
            sizes.append(0)
        else:
            last = sizes.pop() if atom == ")" and len(sizes) > 1 else 1
            sizes[-1] += last
    return sum(sizes)


def _has_finite_instance(root: dict[str, Any], nodes: list[dict[str, Any]]) -> bool:
    """Return whether the recursion of the schema can end, as the least fixed point of "has a finite value"."""
    finite: set[int] = set()
    for _ in range(_MAX_PASSES):
        before = len(finite)
        for node in reversed(nodes):
            if id(node) not in finite and _is_finite(node, root, finite):
                finite.add(id(node))
        if id(root) in finite:
            return True
        if len(finite) == before:
            return False
    raise SchemaError("has a chain of references that is too long")


def _is_finite(node: dict[str, Any], root: dict[str, Any], finite: set[int]) -> bool:
    def is_known(part: Any) -> bool:
        return not isinstance(part, dict) or id(part) in finite

    if "$ref" in node and not is_known(resolve(root, node["$ref"])):
        return False
    choices = [_list(node, name) for name in ("anyOf", "oneOf") if name in node]
    if not all(map(is_known, _list(node, "allOf"))) or not all(any(map(is_known, branches)) for branches in choices):
        return False
    match node.get("type"):
        case "object" | ["object"]:
            properties = _mapping(node, "properties")
            return all(is_known(properties.get(name)) for name in _list(node, "required") if isinstance(name, str))
        case "array" | ["array"]:
            least = node.get("minItems", 0)
            least = least if isinstance(least, int) else 0
            first = _list(node, "prefixItems")[: max(least, 0)]
            return all(map(is_known, first)) and (least <= len(first) or is_known(node.get("items")))
    return True


def resolve(root: Any, reference: Any) -> Any:
    """Return the target of a JSON pointer within the schema, such as "#/$defs/a"; None for any other reference."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        return None
    target = root
    for part in unquote(reference[1:]).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and part.isdecimal() and int(part[:9]) < len(target):
            target = target[int(part)]
        elif isinstance(target, dict) and part in target:
            target = target[part]
        else:
            return None
    return target


def _mapping(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = node.get(name)
    return value if isinstance(value, dict) else {}


def _list(node: Mapping[str, Any], name: str) -> list[Any]:
    value = node.get(name)
    return value if isinstance(value, list) else []
