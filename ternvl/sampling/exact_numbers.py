"""The numbers of a JSON Schema as they are written, and the subschemas that lead to one that llguidance would round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from ternvl.exact_json import number_text
from ternvl.sampling.json_schema import SchemaError, resolve
from ternvl.sampling.number_ranges import MAX_DIGITS, Bound

TYPES = ("null", "boolean", "string", "number", "array", "object")
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
NUMBER_RULES = (*BOUNDS, "multipleOf")
_LARGEST, _SMALLEST = Decimal(2**53 - 1), Decimal("1e-9")
"""Numbers between these are exact in llguidance if they have few digits."""
_MAX_DIGITS, _MAX_EXPONENT = 15, 22
"""llguidance reads a number as an integer times a power of ten, with one rounding only within these limits."""


def decimal_of(value: Any) -> Decimal | None:
    """Return a number of a schema as it is written; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = Decimal(number_text(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS or len(number.as_tuple().digits) > MAX_DIGITS:
        text = number_text(value)
        raise SchemaError(f"has the number {text[:40]}, which has more than the {MAX_DIGITS} digits that are allowed")
    return number


def is_rounded(value: Any) -> bool:
    """Return whether llguidance would take a number for another one."""
    number = decimal_of(value)
    if number is None or (not number and not number.is_signed()):
        return False
    _, digits, exponent = number.as_tuple()
    if isinstance(value, int):
        return number.copy_abs() > _LARGEST
    is_short = len(digits) <= _MAX_DIGITS and -_MAX_EXPONENT <= int(exponent) <= _MAX_EXPONENT
    return not is_short or not _SMALLEST <= number.copy_abs() <= _LARGEST


def rounded_within(value: Any) -> Iterator[Any]:
    """Yield the numbers within a literal that llguidance would round."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(item, dict | list):
            yield from rounded_within(item)
        elif is_rounded(item):
            yield item


def has_rounded(value: Any) -> bool:
    """Return whether llguidance would round a number within a literal."""
    return next(rounded_within([value]), None) is not None


def find_rounded(root: dict[str, Any]) -> dict[int, Any]:
    """Return the ids of the subschemas that lead to a number that llguidance would round, and the number."""
    nodes, found, above = [root], dict[int, Any](), dict[int, list[int]]()
    seen = {id(root)}
    for node in nodes:
        values = [node[name] for name in NUMBER_RULES if name in node]
        number = next(rounded_within([*values, node.get("const"), node.get("enum")]), None)
        if number is not None:
            found[id(node)] = number
        for part in parts_of(node, root):
            above.setdefault(id(part), []).append(id(node))
            if id(part) not in seen:
                seen.add(id(part))
                nodes.append(part)
    queue = list(found)
    for part_id in queue:
        new = [parent for parent in above.get(part_id, ()) if parent not in found]
        found.update(dict.fromkeys(new, found[part_id]))
        queue += new
    anchors = [node["$ref"] for node in nodes if "$ref" in node and resolve(root, node["$ref"]) is None]
    if found and anchors:
        raise SchemaError(
            f"has the number {number_text(next(iter(found.values())))[:40]} beside the $ref "
            f"{str(anchors[0])[:100]!r}; such numbers are supported with JSON pointers alone"
        )
    return found


def parts_of(node: Mapping[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the subschemas on which a subschema depends."""
    parts = [resolve(root, node.get("$ref")), node.get("additionalProperties"), node.get("additionalItems")]
    for name in ("properties", "patternProperties"):
        parts += node[name].values() if isinstance(node.get(name), dict) else []
    for name in ("anyOf", "allOf", "oneOf", "prefixItems", "items"):
        value = node.get(name)
        parts += value if isinstance(value, list) else [value]
    return [part for part in parts if isinstance(part, dict)]


def is_fitting(value: Any, node: dict[str, Any]) -> bool:
    """Return whether a value has one of the types and, if it is a number, is within the bounds."""
    types, number = types_of(node), decimal_of(value)
    if number is None:
        kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
        return kinds.get(type(value)) in types
    if "number" not in types and not ("integer" in types and number == number.to_integral_value()):
        return False
    low, high = bounds_of(node)
    multiple = decimal_of(node.get("multipleOf"))
    return (
        (low is None or (number > low[0] if low[1] else number >= low[0]))
        and (high is None or (number < high[0] if high[1] else number <= high[0]))
        and (multiple is None or _is_multiple(number, multiple))
    )


def types_of(node: Mapping[str, Any]) -> list[str]:
    """Return the types that a subschema allows; without "integer" if it allows every number."""
    types = node.get("type", list(TYPES))
    types = types if isinstance(types, list) else [types]
    return [each for each in types if isinstance(each, str) and not (each == "integer" and "number" in types)]


def bounds_of(node: Mapping[str, Any]) -> tuple[Bound | None, Bound | None]:
    """The tighter of both lower and of both upper bounds."""
    found: list[Bound | None] = []
    for name, strict_name in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        plain, strict = decimal_of(node.get(name)), decimal_of(node.get(strict_name))
        bounds = [(plain, node.get(strict_name) is True)] if plain is not None else []
        bounds += [(strict, True)] if strict is not None else []
        bounds.sort(key=lambda bound: (bound[0] if name == "minimum" else bound[0].copy_negate(), bound[1]))
        found.append(bounds[-1] if bounds else None)
    return found[0], found[1]


def _is_multiple(number: Decimal, multiple: Decimal) -> bool:
    if not multiple:
        raise SchemaError("has multipleOf 0, which no number fulfils")
    return Fraction(number) % Fraction(multiple) == 0


def num_digits(number: Decimal) -> int:
    """Return about how many digits a number has without an exponent."""
    return len(f"{number:f}")
