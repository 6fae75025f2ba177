"""Prepares a JSON Schema for the grammar: closes objects and drops rules that are idle or cannot be enforced."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import LLMatcher

from ternvl import exact_json
from ternvl.sampling.json_schema import (
    MAX_PATTERN_SIZE,
    MAX_PROPERTIES,
    MAX_SUBSCHEMAS,
    SchemaError,
    expanded_size,
    resolve,
)
from ternvl.sampling.schema_keywords import ANNOTATIONS, FORMATS, NUMBER_FORMATS, UNENFORCED, UNENFORCED_FORMATS

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_OBJECT = ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties")

DIALECT = re.compile(r"https?://json-schema\.org/draft(-0[467]|/2019-09|/2020-12)/schema#?")
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
_ATOM = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_RETRIES = (
    (re.compile("oneOf"), ("oneOf",)),
    (re.compile("maxProperties|minProperties"), ("minProperties", "maxProperties")),
    (re.compile("not disjoint|patternProp"), ("patternProperties",)),
    (re.compile("multipleOf|multiple of"), ("multipleOf",)),
)
"""What llguidance says of a rule that it supports in part, and the keywords to drop."""


def prepare(schema: Any, *, closed: bool, lenient: bool) -> list[str]:
    """Change a schema in place, and return the paths of the rules that are not enforced, such as ".items.pattern".

    With `closed`, objects have only the properties that their schema lists, unless it says what others may be.
    With `lenient`, rules that cannot be enforced are dropped; otherwise they stay, and compiling refuses them. Formats
    that JSON Schema does not define constrain nothing, so they are dropped in either case. Raises SchemaError for a
    schema with too many parts.
    """
    if not isinstance(schema, dict):
        return []
    nodes = list(subschemas(schema))
    dropped = [f"{path}.{name}" for path, node in nodes for name in _reduce(node, lenient)]
    if closed:
        _close([node for _, node in nodes], schema)
    return dropped + (_retry(nodes, schema) if lenient else [])


def subschemas(root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the value of every subschema, among them the targets of references, each once."""
    queue: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    for path, node in queue:
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        if len(seen) > MAX_SUBSCHEMAS:
            raise SchemaError(f"has more than the {MAX_SUBSCHEMAS} subschemas that are allowed")
        yield path, node
        if len(node["properties"] if isinstance(node.get("properties"), dict) else ()) > MAX_PROPERTIES:
            raise SchemaError(f"has an object with more than the {MAX_PROPERTIES} properties that are allowed")
        for name in _MAPS:
            parts = node.get(name)
            queue += [(f"{path}.{name}.{key}", part) for key, part in parts.items()] if isinstance(parts, dict) else []
        for name in (*_LISTS, *_SINGLE):
            parts = node.get(name)
            if isinstance(parts, list):
                queue += [(f"{path}.{name}[{index}]", part) for index, part in enumerate(parts)]
            elif name in _SINGLE:
                queue.append((f"{path}.{name}", parts))
        queue.append((f"{path}.$ref", resolve(root, node.get("$ref"))))


def _reduce(node: dict[str, Any], lenient: bool) -> list[str]:
    """Drop the rules of one subschema that need not or cannot be enforced; return the names of the latter."""
    for name in [name for name in node if name in ANNOTATIONS or (name in UNENFORCED and _is_idle(node, name))]:
        del node[name]
    if isinstance(node.get("$schema"), str) and not DIALECT.fullmatch(node["$schema"]):
        del node["$schema"]
    _reduce_unevaluated(node)
    dropped = _reduce_format(node, lenient)
    if lenient:
        dropped += [name for name in UNENFORCED if node.pop(name, None) is not None]
        dropped += _reduce_patterns(node)
        if not _at_most(node.get("minProperties", 0), max(1, len(_list(node.get("required"))))):
            del node["minProperties"]
            dropped.append("minProperties")
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        if not lenient:
            raise SchemaError(f"has a $ref to {reference[:200]!r}, but references out of the schema are not supported")
        del node["$ref"]
        dropped.append("$ref")
    return dropped


def _is_idle(node: Mapping[str, Any], name: str) -> bool:
    """Return whether a keyword with this value allows everything."""
    value = node[name]
    match name:
        case "uniqueItems":
            most = node.get("maxItems")
            return value is False or (isinstance(most, int) and most in (0, 1))
        case "propertyNames" | "unevaluatedProperties" | "unevaluatedItems":
            return value is True or (isinstance(value, dict) and _allows_strings(value))
        case "dependentRequired" | "dependentSchemas" | "dependencies":
            return bool(value == {})
        case "minContains" | "maxContains":
            return "contains" not in node
        case "then" | "else":
            return "if" not in node
        case "if":
            return "then" not in node and "else" not in node
        case "$dynamicAnchor":
            return True
    return name == "not" and value is False


def _allows_strings(schema: Mapping[str, Any]) -> bool:
    rules = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
    return not rules or rules == {"type": "string"}


def _reduce_unevaluated(node: dict[str, Any]) -> None:
    """Write `unevaluatedProperties: false` as `additionalProperties: false` where both mean the same."""
    applies = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "additionalProperties")
    if node.get("unevaluatedProperties") is False and not any(name in node for name in applies):
        node["additionalProperties"] = node.pop("unevaluatedProperties")


def _reduce_format(node: dict[str, Any], lenient: bool) -> list[str]:
    form, types = node.get("format"), node.get("type", "string")
    types = types if isinstance(types, str | list) else ()
    if not isinstance(form, str) or form in FORMATS or (form in UNENFORCED_FORMATS and not lenient):
        return []
    del node["format"]
    return ["format"] if "string" in types and form not in NUMBER_FORMATS else []


def _reduce_patterns(node: dict[str, Any]) -> list[str]:
    dropped = []
    if isinstance(node.get("pattern"), str) and not _is_pattern(node["pattern"]):
        weaker = _without_look_around(node.pop("pattern"))
        if weaker is not None and _is_pattern(weaker):
            node["pattern"] = weaker
        dropped.append("pattern")
    keys = node.get("patternProperties")
    for key in [key for key in keys if not _is_pattern(key)] if isinstance(keys, dict) else []:
        del keys[key]  # type: ignore[union-attr]
        dropped.append(f"patternProperties.{key}")
    return dropped


def _is_pattern(regex: str) -> bool:
    if expanded_size(regex) > MAX_PATTERN_SIZE:
        return False
    return not LLMatcher.validate_grammar(_grammar({"type": "string", "pattern": regex}))


def _without_look_around(regex: str) -> str | None:
    """Return the regex without its look-around, which allows more texts, or None if it has none or is invalid."""
    kept, depths, found = "", list[bool](), False  # whether each open group is within look-around
    for match in _ATOM.finditer(regex):
        atom, hidden = match.group(), bool(depths) and depths[-1]
        if atom == "(":
            opens = bool(_LOOK_AROUND.match(regex, match.start()))
            found |= opens
            hidden |= opens
            depths.append(hidden)
        elif atom == ")" and depths:
            depths.pop()
        kept += "" if hidden else atom
    return kept if found and not depths else None


def _close(nodes: list[dict[str, Any]], root: dict[str, Any]) -> None:
    open_ids = _intersected(nodes, root)
    for node in nodes:
        listed, required = node.get("properties"), _list(node.get("required"))
        if id(node) in open_ids or not isinstance(listed, dict) or "additionalProperties" in node:
            continue
        unlisted = [name for name in required if isinstance(name, str) and name not in listed]
        least = node.get("minProperties", 0)
        if (unlisted and "patternProperties" in node) or not _at_most(least, len(listed)):
            continue
        listed.update(dict.fromkeys(unlisted, True))
        node["additionalProperties"] = False


def _at_most(value: Any, limit: int) -> bool:
    return isinstance(value, int | float) and bool(value <= limit)


def _intersected(nodes: list[dict[str, Any]], root: dict[str, Any]) -> set[int]:
    """Return the ids of subschemas that hold for an object beside another one, which may list other properties."""
    found: set[int] = set()
    queue = []
    for node in nodes:
        sides = [node[name] for name in ("anyOf", "oneOf", "$ref") if name in node]
        num_own = any(name in node for name in _OBJECT)
        if num_own + len(sides) + len(_list(node.get("allOf"))) > 1:
            queue.append(node)
    for node in queue:
        if id(node) in found:
            continue
        found.add(id(node))
        parts = [resolve(root, node.get("$ref"))]
        for name in ("anyOf", "oneOf", "allOf"):
            parts += _list(node.get(name))
        queue += [part for part in parts if isinstance(part, dict)]
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _retry(nodes: list[tuple[str, dict[str, Any]]], root: dict[str, Any]) -> list[str]:
    """Drop the rules that llguidance supports in part, if it does not support them here."""
    dropped: list[str] = []
    partial = {name for _, names in _RETRIES for name in names}
    while any(partial & node.keys() for _, node in nodes):
        error = LLMatcher.validate_grammar(_grammar(root)).partition("\n")[0]
        names = next((names for regex, names in _RETRIES if error and regex.search(error)), ())
        affected = [(path, node, name) for path, node in nodes for name in names if name in node]
        if not affected:
            break
        for path, node, name in affected:
            dropped.append(f"{path}.{name}")
            value = node.pop(name)
            if name == "oneOf" and "anyOf" not in node:
                node["anyOf"] = value
    return dropped


def _grammar(schema: Mapping[str, Any]) -> str:
    return "start: %json " + exact_json.dumps({**schema, "x-guidance": {"lenient": False, "coerce_one_of": False}})
