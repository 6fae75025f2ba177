"""The grammar of JSON that matches a schema, exact also for numbers that llguidance would round.

llguidance reads the numbers of a schema as doubles. The subschemas on the way to a number that a double does not hold
are written as rules here, down to that number; llguidance compiles all others as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ternvl import exact_json
from ternvl.exact_json import number_text
from ternvl.sampling import number_ranges
from ternvl.sampling.exact_numbers import (
    NUMBER_RULES,
    TYPES,
    bounds_of,
    find_rounded,
    has_rounded,
    is_fitting,
    is_rounded,
    num_digits,
    parts_of,
    types_of,
)
from ternvl.sampling.json_schema import SchemaError, options, resolve
from ternvl.sampling.number_ranges import MAX_RANGE_DIGITS
from ternvl.sampling.schema_keywords import UNENFORCED

MAX_SIZE = 2 * 1024 * 1024
"""Characters of the rules of one schema."""

_ARRAY = ("items", "prefixItems", "additionalItems", "minItems", "maxItems")
_OBJECT = ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties")
_STRING = ("minLength", "maxLength", "pattern", "format")
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf")
_RULES = frozenset((*NUMBER_RULES, *_ARRAY, *_OBJECT, *_STRING, *_COMBINED, "type", "enum", "const"))
_STRING_BODY = r"([^\"\\\x00-\x1f\x7f]|\\[nrtbf\"\\])*"


def rules(name: str, schema: dict[str, Any], *, inline: bool) -> str:
    """Return the rules of a Lark grammar for JSON that matches `schema`; the first is called `name`.

    `inline` is that of `json_schema.options`. Raises SchemaError for a number that cannot be enforced exactly.
    """
    try:
        return "\n".join(_Writer(name, schema, inline=inline).write())
    except SchemaError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise SchemaError(f"is no valid JSON Schema: {error}") from error


class _Writer:
    """Writes the rules of one schema. Names of rules begin with the name of the first."""

    def __init__(self, name: str, root: dict[str, Any], *, inline: bool) -> None:
        self._name, self._root, self._inline = name, root, inline
        self._lines: list[str] = []
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []  # holds the subschemas that are made here, so that their ids stay theirs
        self._count = self._size = 0
        self._rounded = find_rounded(root)
        self._space = f"{name}_s?" if not inline else ""
        self._comma = f'{name}_s? "," {name}_s?' if not inline else f'"," {name}_s?'
        self._colon = f'{name}_s? ":" {name}_s?' if not inline else f'":" {name}_s?'

    def write(self) -> list[str]:
        """Return all lines."""
        if id(self._root) not in self._rounded:
            return [f"{self._name}: {self._json(self._root)}"]
        self._lines = [""]
        space = r"/\x20/" if self._inline else r"/\x20|\x0A\x20{0,32}/"
        self._lines[0] = f"{self._name}: {self._rule(self._root)}"
        return [*self._lines, f"{self._name}_s: {space}"]

    def _rule(self, node: Any) -> str:
        """Return the name of the rule of a subschema, which is written at the first call."""
        if id(node) in self._names:
            return self._names[id(node)]
        self._kept.append(node)
        name = self._names[id(node)] = self._new_name()
        self._add(name, self._body(node) if id(node) in self._rounded else self._json(node))
        return name

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._name}_{self._count}"

    def _add(self, name: str, body: str) -> None:
        self._size += len(body)
        if self._size > MAX_SIZE:
            raise SchemaError(f"has a grammar of more than the {MAX_SIZE} characters that are allowed")
        self._lines.append(f"{name}: {body}")

    def _terminal(self, body: str) -> str:
        name = self._new_name().upper()
        self._add(name, body)
        return name

    def _body(self, node: dict[str, Any]) -> str:
        given = [name for name in node if name in _RULES]
        combined = [name for name in _COMBINED if name in node]
        if combined:
            return self._combined(node, combined[0], [name for name in given if name not in (combined[0], "type")])
        unserved = next((name for name in node if name in UNENFORCED), None)
        if unserved:
            raise SchemaError(f'uses "{unserved}", which is not supported')
        if "enum" in node or "const" in node:
            return self._values(node, given)
        return self._by_type(node)

    def _refuse(self, node: Any, beside: str) -> SchemaError:
        number = number_text(self._rounded[id(node)])[:40]
        return SchemaError(f"has the number {number}, which cannot be enforced exactly beside {beside}")

    def _combined(self, node: dict[str, Any], name: str, others: list[str]) -> str:
        """The body of a subschema that refers to others."""
        branches = [resolve(self._root, node["$ref"])] if name == "$ref" else node[name]
        if others or not isinstance(branches, list):
            raise self._refuse(node, f"{name} with {', '.join(others)}")
        if name == "allOf" and len(branches) != 1:
            raise self._refuse(node, "allOf")
        if "type" in node:
            branches = [self._typed(branch, types_of(node), node) for branch in branches]
        if name == "oneOf" and not self._are_disjoint(branches):
            raise self._refuse(node, "oneOf")
        names = [self._rule(branch) for branch in branches if branch is not False]
        if not names:
            raise SchemaError("is a schema that no value fulfils")
        return " | ".join(names)

    def _typed(self, branch: Any, types: list[str], parent: Any) -> Any:
        """Return a branch restricted to the types of its parent."""
        if not isinstance(branch, dict):
            return {"type": types} if branch is True else branch
        own = types_of(branch)
        both = [each for each in own if each in types or (each == "integer" and "number" in types)]
        both += [each for each in types if each == "integer" and "number" in own and each not in both]
        if not both:
            return False
        typed = {**branch, "type": both}
        self._kept.append(typed)
        if id(branch) in self._rounded:
            self._rounded[id(typed)] = self._rounded[id(branch)]
        return typed

    def _are_disjoint(self, branches: list[Any]) -> bool:
        kinds = [set(types_of(branch)) if isinstance(branch, dict) else set(TYPES) for branch in branches]
        kinds = [{"number" if each == "integer" else each for each in kind} for kind in kinds]
        return sum(map(len, kinds)) == len(set().union(*kinds))

    def _values(self, node: dict[str, Any], given: list[str]) -> str:
        """The body of a subschema that lists its values."""
        values = node.get("enum", [node.get("const")])
        if not isinstance(values, list) or ("enum" in node and "const" in node):
            raise self._refuse(node, "enum with const")
        kept = [value for value in values if is_fitting(value, node)]
        exact = [value for value in kept if has_rounded(value)]
        others = [name for name in given if name not in ("enum", "const", "type", *NUMBER_RULES)]
        if others and any(isinstance(value, dict | list) for value in exact):
            raise self._refuse(node, ", ".join(others))
        bodies = [self._literal(value) for value in exact]
        rest = [value for value in kept if not has_rounded(value)]
        if rest:
            bodies.append(self._part({**{name: node[name] for name in others}, "enum": rest}))
        if not bodies:
            raise SchemaError("is a schema that no value fulfils")
        return " | ".join(bodies)

    def _literal(self, value: Any) -> str:
        if isinstance(value, dict):
            items = [f"{_quoted(key)} {self._colon} {self._literal(item)}" for key, item in value.items()]
            return self._enclosed("{", f" {self._comma} ".join(items), "}")
        if isinstance(value, list):
            return self._enclosed("[", f" {self._comma} ".join(map(self._literal, value)), "]")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return json.dumps(number_text(value)) if is_number else _quoted(value)

    def _enclosed(self, begin: str, body: str, end: str) -> str:
        return f'"{begin}" {self._space} {body} {self._space if body else ""} "{end}"'

    def _by_type(self, node: dict[str, Any]) -> str:
        """The body of a subschema that restricts each type of value by keywords of that type."""
        rest, bodies = dict(node), list[str]()
        types = types_of(node)
        if any(is_rounded(node[name]) for name in NUMBER_RULES if name in node):
            numeric = [each for each in types if each in ("number", "integer")]
            types = [each for each in types if each not in numeric]
            bodies += [body for body in [self._number(node, "number" in numeric)] if numeric and body]
            rest = _without(rest, NUMBER_RULES)
        for kind, names, write in (("array", _ARRAY, self._array), ("object", _OBJECT, self._object)):
            own = {name: node[name] for name in names if name in node}
            if any(id(part) in self._rounded for part in parts_of(own, self._root)):
                bodies += [write(own, node)] if kind in types else []
                types = [each for each in types if each != kind]
                rest = _without(rest, names)
        if types:
            bodies.append(self._part({**_without(rest, ("$defs", "definitions", "$schema", "$id")), "type": types}))
        if not bodies:
            raise SchemaError("is a schema that no value fulfils: its minimum is above its maximum, or it has no type")
        return " | ".join(bodies)

    def _number(self, node: dict[str, Any], with_fractions: bool) -> str | None:
        if "multipleOf" in node:
            raise self._refuse(node, "multipleOf")
        low, high = bounds_of(node)
        if low and high and max(map(num_digits, (low[0], high[0]))) > MAX_RANGE_DIGITS:
            raise SchemaError(f"has a minimum and a maximum, of which one has more than {MAX_RANGE_DIGITS} digits")
        terminal = (number_ranges.numbers if with_fractions else number_ranges.integers)(low, high)
        return terminal and self._terminal(terminal)

    def _array(self, own: dict[str, Any], node: dict[str, Any]) -> str:
        first, item = _list(own.get("prefixItems")), own.get("items", True)
        if isinstance(item, list):
            first, item = item, own.get("additionalItems", True)
        least, most = _count(own.get("minItems", 0)), own.get("maxItems")
        if False in first or least is None or (most is not None and _count(most) is None):
            raise self._refuse(node, "items without a valid length")
        limit = len(first) if item is False else most
        limit = limit if most is None or limit is None else min(limit, most)
        if limit is not None and limit < least:
            raise SchemaError(f"has minItems {least}, but allows at most {limit} items")
        first = first[:limit]
        body, num_more = self._more_items(item, max(0, least - len(first)), limit, len(first)), len(first)
        for index in range(num_more - 1, -1, -1):
            head = f"{self._comma if index else ''} {self._rule(first[index])}"
            body = f"{head} {body}" if index < least else f"({head} {body})?"
        return self._enclosed("[", body.strip(), "]")

    def _more_items(self, item: Any, least: int, limit: int | None, num_first: int) -> str:
        """The items after the first `num_first`, at least `least` and `limit` in all."""
        most = None if limit is None else limit - num_first
        if item is False or most == 0:
            return ""
        one = self._rule(item)
        if num_first:
            return _repeated(f"({self._comma} {one})", least, most)
        more = _repeated(f"({self._comma} {one})", max(0, least - 1), None if most is None else most - 1)
        return f"{one} {more}" if least else f"({one} {more})?"

    def _object(self, own: dict[str, Any], node: dict[str, Any]) -> str:
        listed, required = dict(own.get("properties", {})), _list(own.get("required"))
        more = own.get("additionalProperties", True)
        listed.update({name: more for name in required if isinstance(name, str) and name not in listed})
        most = own.get("maxProperties")
        is_counted = own.get("minProperties", 0) > len(required) or (
            most is not None and (more is not False or most < len(listed))
        )
        if is_counted or own.get("patternProperties"):
            raise self._refuse(node, "minProperties, maxProperties or patternProperties")
        if any(listed[name] is False for name in required):
            raise SchemaError("requires a property that no value fulfils")
        pairs = [
            (f"{_quoted(name)} {self._colon} {self._rule(part)}", name in required)
            for name, part in listed.items()
            if part is not False
        ]
        last = "" if more is False else f"{self._key(listed)} {self._colon} {self._rule(more)}"
        return self._enclosed("{", self._members(pairs, last), "}")

    def _members(self, pairs: list[tuple[str, bool]], last: str) -> str:
        """The members of an object: pairs, each required or not, then any number of `last`."""
        later = f"({self._comma} {last})*" if last else ""
        first = f"({last} {later})?" if last else ""
        for pair, is_required in reversed(pairs):
            behind = self._new_name()
            self._add(behind, later or '""')
            first = f"{pair} {behind}" if is_required else f"({pair} {behind} | {self._named(first)})"
            later = f"{self._comma} {pair} {behind}" if is_required else f"({self._comma} {pair})? {behind}"
        return first

    def _named(self, body: str) -> str:
        name = self._new_name()
        self._add(name, body or '""')
        return name

    def _key(self, listed: Mapping[str, Any]) -> str:
        """The terminal of the keys that are not listed."""
        names = [re.escape(json.dumps(name, ensure_ascii=False)).replace("/", r"\/") for name in listed]
        names = [name.replace('"', r"\"") for name in names]
        return self._terminal(f'/"{_STRING_BODY}"/' + (f" & ~/{'|'.join(names)}/" if names else ""))

    def _part(self, node: dict[str, Any]) -> str:
        """The name of the rule of a subschema that is made here, and in which llguidance rounds nothing."""
        return self._rule(node)

    def _json(self, node: Any) -> str:
        """The body of a subschema that llguidance compiles."""
        schema = {} if node is True else dict(node)
        if self._rounded and _has_reference(schema):
            whole = self._without_rounded(self._root)
            schema = {**self._without_rounded(_without(schema, ("$defs", "definitions"))), "$defs": {"root": whole}}
        text = exact_json.dumps({**schema, "x-guidance": options(inline=self._inline)})
        return f"%json {text}"

    def _without_rounded(self, value: Any) -> Any:
        """Return a copy of a schema below `#/$defs/root`, without the subschemas that are written as rules here."""
        if isinstance(value, list):
            return [self._without_rounded(item) for item in value]
        if not isinstance(value, dict):
            return 0 if is_rounded(value) else value
        if id(value) in self._rounded and value is not self._root and not _MAPS & value.keys():
            return {}
        return {
            key: f"#/$defs/root{item[1:]}" if key == "$ref" and isinstance(item, str) else self._without_rounded(item)
            for key, item in value.items()
            if key not in ("$schema", "$id")
        }


_MAPS = {"properties", "$defs", "definitions", "items", "anyOf"}


def _quoted(value: Any) -> str:
    """A JSON value as a literal of a Lark grammar."""
    return json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False)


def _repeated(body: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    return f"{body}{{{least},{'' if most is None else most}}}"


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _without(node: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name not in names}


def _has_reference(value: Any) -> bool:
    if isinstance(value, dict):
        return "$ref" in value or any(map(_has_reference, value.values()))
    return isinstance(value, list) and any(map(_has_reference, value))
