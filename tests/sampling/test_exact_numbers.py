"""Numbers of schemas beyond a double: random walks over the grammar, compared as decimals."""

from __future__ import annotations

import json
import pickle
import random
from decimal import Decimal
from typing import Any

import pytest

from ternvl import exact_json
from ternvl.errors import RequestError
from ternvl.exact_json import RawFloat
from ternvl.params import Grammar
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.sampling.tools import Tools
from tests.counts import count
from tests.sampling.walking import accepts, make_compiler, walk

NUM_SCHEMAS = count("TERNVL_EXACT_SCHEMAS")
BIG, NEAR = 2**53 + 1, 2**53
EMPTY = ("no value fulfils", "nothing", "nsatisfiable", "minimum")
"""What the errors say of a schema that allows nothing."""


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return make_compiler()


def number(rng: random.Random) -> str:
    """The text of a number: a big integer, a long decimal, one with an exponent, a zero or a short one."""
    sign = rng.choice(["", "-"])
    digits = str(rng.randrange(1, 10 ** rng.choice([1, 3, 16, 17, 19, 25, 60])))
    match rng.randrange(5):
        case 0:
            return sign + str(rng.choice([2**53, 2**63, 2**64, 10**22]) + rng.randrange(-3, 4))
        case 1:
            return f"{sign}{rng.randrange(100)}.{digits}"
        case 2:
            return f"{sign}{digits[0]}.{digits}e{rng.choice(['', '+', '-'])}{rng.randrange(40)}"
        case 3:
            return rng.choice(["-0", "-0.0", "0", "0.0", "-0e5"])
    return sign + digits


def leaf(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["const", "enum", "integer", "number"])
    drawn = [loaded(number(rng)) for _ in range(rng.randrange(1, 4))]
    if kind in ("const", "enum"):
        return {"const": drawn[0]} if kind == "const" else {"enum": [*drawn, rng.choice(["x", None, [drawn[0]], 3])]}
    low, high = sorted((loaded(number(rng)) for _ in range(2)), key=decimal)
    bounds = {rng.choice(["minimum", "exclusiveMinimum"]): low, rng.choice(["maximum", "exclusiveMaximum"]): high}
    for name in rng.sample(sorted(bounds), rng.choice([0, 0, 1])):
        del bounds[name]
    return {"type": kind, **bounds}


def schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    match rng.randrange(6 if depth else 2):
        case 2 | 3:
            names = rng.sample(["a", "b", "c", "größe"], rng.randrange(1, 4))
            required = [name for name in names if rng.random() < 0.6]
            properties = {name: schema(rng, depth - 1) for name in names}
            return {"type": "object", "properties": properties, "required": required}
        case 4:
            least = rng.randrange(3)
            items = {"items": schema(rng, depth - 1), "minItems": least, "maxItems": least + rng.randrange(1, 3)}
            return {"type": "array", **items}
        case 5:
            return {"anyOf": [schema(rng, depth - 1), rng.choice([{"type": "null"}, schema(rng, depth - 1)])]}
    return leaf(rng)


def random_schema(rng: random.Random) -> dict[str, Any]:
    root = schema(rng)
    if rng.random() < 0.3:
        root = {"$defs": {"n": root}, "type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2}
    return root


def loaded(text: str) -> Any:
    return exact_json.loads(text)


def decimal(value: Any) -> Decimal:
    return Decimal(exact_json.number_text(value))


def fulfils(value: Any, rules: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value whose numbers are Decimals matches one of this test's schemas."""
    if "$ref" in rules:
        return fulfils(value, root["$defs"]["n"], root)
    if "anyOf" in rules:
        return any(fulfils(value, part, root) for part in rules["anyOf"])
    if "const" in rules or "enum" in rules:
        return exact(value) in map(exact, rules.get("enum", [rules.get("const")]))
    if rules["type"] == "null":
        return value is None
    if rules["type"] == "object":
        known = isinstance(value, dict) and value.keys() <= rules["properties"].keys() >= set(rules["required"])
        needed = known and set(rules["required"]) <= value.keys()
        return needed and all(fulfils(item, rules["properties"][name], root) for name, item in value.items())
    if rules["type"] == "array":
        sized = isinstance(value, list) and rules.get("minItems", 0) <= len(value) <= rules["maxItems"]
        return sized and all(fulfils(item, rules["items"], root) for item in value)
    if not isinstance(value, Decimal) or (rules["type"] == "integer" and value != value.to_integral_value()):
        return False
    return (
        ("minimum" not in rules or value >= decimal(rules["minimum"]))
        and ("exclusiveMinimum" not in rules or value > decimal(rules["exclusiveMinimum"]))
        and ("maximum" not in rules or value <= decimal(rules["maximum"]))
        and ("exclusiveMaximum" not in rules or value < decimal(rules["exclusiveMaximum"]))
    )


def exact(value: Any) -> Any:
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, Decimal):
        return value
    return value if isinstance(value, bool) or not isinstance(value, int | float) else decimal(value)


def test_numbers_of_random_schemas_are_exact_in_answers_and_in_calls(compiler: GrammarCompiler) -> None:
    """TERNVL_EXACT_SCHEMAS sets how many schemas are drawn."""
    counts = {"values": 0, "inexact": 0, "refused": 0}
    for seed in range(NUM_SCHEMAS):
        rng = random.Random(seed)
        rules = random_schema(rng)
        grammar = Grammar.of("json_schema", rules)
        if seed % 2:
            inner = {name: value for name, value in rules.items() if name != "$defs"}
            parameters = {"$defs": rules.get("$defs", {}), "properties": {"v": inner}, "required": ["v"]}
            call = {"type": "function", "function": {"name": "f", "parameters": parameters}}
            drawn = Tools([call], "required", parallel=False).grammar()
            assert drawn is not None
            grammar = drawn
        try:
            compiler.compile(grammar)
        except RequestError as error:
            counts["refused"] += 1
            if not any(words in str(error) for words in EMPTY):
                raise
            continue
        for attempt in range(3):
            text = walk(compiler, grammar, random.Random(f"{seed} {attempt}"))
            if text is None:
                continue
            if seed % 2:
                text = text.split('"arguments": ', 1)[1].removesuffix("}\n</tool_call>")
            value = json.loads(text, parse_int=Decimal, parse_float=Decimal)
            counts["values"] += 1
            counts["inexact"] += not fulfils(value["v"] if seed % 2 else value, rules, rules)
    print(counts)
    assert counts["inexact"] == 0
    assert counts["values"] > NUM_SCHEMAS
    assert counts["refused"] < NUM_SCHEMAS / 4


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        ('{"const": 9007199254740993}', ["9007199254740993"], ["9007199254740992", "9007199254740993.0"]),
        ('{"enum": [1234567890123456789]}', ["1234567890123456789"], ["1234567890123456768"]),
        ('{"enum": [1e400, -0.0, 1e-400]}', ["1e400", "-0.0", "1e-400"], ["0", "0.0", "1e40"]),
        ('{"const": {"a": [9007199254740993]}}', ['{ "a" : [9007199254740993] }'], ['{"a": [9007199254740992]}']),
        (
            '{"type": "integer", "minimum": 9223372036854775808}',
            ["9223372036854775808", "10" + "0" * 40],
            ["9223372036854775807", "-10" + "0" * 40],
        ),
        (
            '{"type": "integer", "maximum": -9223372036854775809}',
            ["-9223372036854775809"],
            ["-9223372036854775808", "0"],
        ),
        ('{"minimum": 9007199254740993}', ["9007199254740993", '"x"', "null", "[1]"], ["9007199254740992"]),
        (
            '{"type": "number", "exclusiveMaximum": 0.12345678901234567890}',
            ["0.123456789012345678", "-5"],
            ["0.1234567890123456789"],
        ),
        (
            '{"type": "array", "items": {"const": 9007199254740993}, "minItems": 1}',
            ["[9007199254740993]"],
            ["[]", "[9007199254740992]"],
        ),
        (
            '{"type": ["string", "array"], "prefixItems": [{"const": 9007199254740993}], "items": {"type": "null"}}',
            ['"x"', "[]", "[9007199254740993, null]"],
            ["[null]", "5"],
        ),
        (
            '{"type": "integer", "anyOf": [{"minimum": 9007199254740993}, {"type": "null"}]}',
            ["9007199254740993"],
            ["9007199254740992", "null"],
        ),
        (
            '{"type": "object", "additionalProperties": {"const": 9007199254740993}, "required": ["z"]}',
            ['{"z":9007199254740993}', '{"z":9007199254740993, "y":9007199254740993}'],
            ["{}", '{"z":1}'],
        ),
        (
            '{"properties": {"a": {"const": 9007199254740993}, "b": {"$ref": "#"}}, "type": "object"}',
            ['{"b":{"b":{"a":9007199254740993}}}', "{}"],
            ['{"b":{"a":9007199254740992}}', '{"c":1}'],
        ),
        (
            '{"type": "integer", "enum": [9007199254740993, 9007199254740995, 2.5], "minimum": 9007199254740994}',
            ["9007199254740995"],
            ["9007199254740993", "2.5"],
        ),
        (
            '{"enum": [9007199254740993, 9007199254740995, "x", true], "type": ["integer", "string"], "multipleOf": 3}',
            ["9007199254740993", '"x"'],
            ["9007199254740995", "true"],
        ),
        (
            '{"enum": [9007199254740993, "x", "long"], "maxLength": 2}',
            ["9007199254740993", '"x"'],
            ['"long"', "9007199254740992"],
        ),
        (
            '{"type": "array", "items": [{"const": 9007199254740993}, true], "additionalItems": false}',
            ["[]", "[9007199254740993]", '[9007199254740993, {"a": 1}]'],
            ["[1]", "[9007199254740993, 1, 2]"],
        ),
        (
            '{"type": "array", "prefixItems": [{"type": "null"}], "items": {"const": 9007199254740993}, "minItems": 2, '
            '"maxItems": 3}',
            ["[null, 9007199254740993]", "[null, 9007199254740993, 9007199254740993]"],
            ["[null]", "[null, 9007199254740992]", "[9007199254740993, 9007199254740993]"],
        ),
        (
            '{"type": "array", "items": {"const": 9007199254740993}, "maxItems": 0}',
            ["[]"],
            ["[9007199254740993]"],
        ),
        (
            '{"type": "object", "properties": {"a": {"const": 9007199254740993}, "b": false}, "required": ["c"],'
            ' "additionalProperties": {"type": "null"}}',
            ['{"a": 9007199254740993, "c": null}', '{"c":null, "d":null}'],
            ['{"a": 9007199254740993}', '{"b": null, "c": null}', '{"c": 1}'],
        ),
        (
            '{"type": ["number", "null"], "anyOf": [{"type": "integer", "minimum": 9007199254740993}, true, false]}',
            ["9007199254740993", "1.5", "null"],
            ['"x"', "true"],
        ),
        (
            '{"properties": {"a": {"anyOf": [{"$ref": "#/properties/b"}, {"const": 9007199254740993}]}, "b": '
            '{"type": "array", "items": {"$ref": "#/$defs/word"}}}, "$defs": {"word": {"type": "string"}}, '
            '"type": "object"}',
            ['{"a": ["x"]}', '{"a": 9007199254740993, "b": []}'],
            ['{"a": [1]}', '{"a": 9007199254740992}'],
        ),
        (
            '{"type": "number", "minimum": 0.12345678901234567, "exclusiveMinimum": true, "maximum": 1}',
            ["0.123456789012345671", "1"],
            ["0.12345678901234567", "1.01"],
        ),
    ],
)
def test_a_number_is_itself_and_no_neighbour(
    compiler: GrammarCompiler, schema: str, accepted: list[str], refused: list[str]
) -> None:
    grammar = Grammar.of("json_schema", schema)
    assert [text for text in accepted if not accepts(compiler, grammar, text)] == []
    assert [text for text in refused if accepts(compiler, grammar, text)] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"type": "integer", "minimum": BIG, "multipleOf": 3},
            f"{BIG}, which cannot be enforced exactly beside multipleOf",
        ),
        ({"allOf": [{"minimum": BIG}, {"maximum": 4}]}, f"{BIG}, which cannot be enforced exactly beside allOf"),
        ({"properties": {"a": {"const": BIG}}, "patternProperties": {"^b": {}}}, "patternProperties"),
        ({"oneOf": [{"const": BIG}, {"const": NEAR}]}, "oneOf"),
        ({"type": "integer", "minimum": BIG, "maximum": NEAR}, "no value fulfils"),
        ('{"type": "number", "minimum": 1e99999}', "1e99999, which has more than the 4300 digits"),
        ({"anyOf": [{"const": BIG}, {"not": {"const": 3}}]}, '"not"'),
        ({"const": BIG, "type": "string"}, "is a schema that no value fulfils"),
        ({"anyOf": [{"const": BIG}], "type": "string"}, "is a schema that no value fulfils"),
        ({"anyOf": [{"type": "integer", "minimum": BIG}], "type": "null"}, "is a schema that no value fulfils"),
        (
            {"allOf": {"const": BIG}, "minimum": BIG},
            f"{BIG}, which cannot be enforced exactly beside allOf with minimum",
        ),
        ({"enum": [BIG], "const": 3}, f"{BIG}, which cannot be enforced exactly beside enum with const"),
        ({"enum": [[BIG]], "maxItems": 3}, f"{BIG}, which cannot be enforced exactly beside maxItems"),
        ({"type": "array", "items": {"const": BIG}, "maxItems": -1}, "beside items without a valid length"),
        (
            {"type": "array", "items": {"const": BIG}, "minItems": 3, "maxItems": 2},
            "has minItems 3, but allows at most 2",
        ),
        ({"type": "object", "properties": {"a": {"const": BIG}}, "maxProperties": 0}, "maxProperties"),
        (
            {"type": "object", "properties": {"a": {"const": BIG}, "b": False}, "required": ["b"]},
            "requires a property that no value fulfils",
        ),
        ({"enum": [BIG], "multipleOf": 0}, "multipleOf 0, which no number fulfils"),
        ({"type": "object", "properties": {"a": {"const": BIG}}, "minProperties": "x"}, "is no valid JSON Schema"),
        ('{"type": "number", "minimum": 1e9999999999999999999}', "1e9999999999999999999, which has more than the 4300"),
        (False, "is a schema that no value fulfils"),
        ([BIG], "must be a JSON Schema, an object"),
        ({"properties": {"a": {"$ref": "#x"}, "b": {"const": BIG}}, "$defs": {"x": {"$anchor": "x"}}}, "'#x'"),
    ],
)
def test_a_number_that_cannot_be_exact_is_refused_by_name(compiler: GrammarCompiler, schema: Any, words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        compiler.compile(Grammar.of("json_schema", schema, param="guided_json"))
    assert words in str(refusal.value)
    assert refusal.value.param == "guided_json"


@pytest.mark.parametrize("digits", [400, 4_000])
def test_bounds_of_thousands_of_digits(compiler: GrammarCompiler, digits: int) -> None:
    bound = "1" + "7" * digits
    rules = [f'"minimum": {bound}', f'"maximum": {bound[:-1]}8', f'"minimum": {bound}, "maximum": {bound[:-1]}8']
    for rule, expected in zip(rules, ("789", "678", "78"), strict=True):
        grammar = Grammar.of("json_schema", f'{{"type": "integer", {rule}}}')
        if digits > 500 and rule is rules[-1]:
            with pytest.raises(RequestError, match="more than 500 digits"):
                compiler.compile(grammar)
        else:
            found = [last for last in "6789" if accepts(compiler, grammar, bound[:-1] + last)]
            assert "".join(found) == expected


def test_json_keeps_the_digits_that_a_double_loses() -> None:
    text = '[0.12345678901234567890, 1e400, 1.5, -0.0, 1234567890123456789, 1e22, {"a": 1.0000000000000001}]'
    value = exact_json.loads(text)
    assert [type(item) for item in value[:4]] == [RawFloat, RawFloat, float, float]
    assert exact_json.dumps(value) == text.replace("1e22", "1e+22")
    assert exact_json.dumps({"a": (Decimal("1.10"), "x")}) == '{"a": [1.10, "x"]}'
    assert [item.text for item in pickle.loads(pickle.dumps(value[:2]))] == ["0.12345678901234567890", "1e400"]
    assert exact_json.loads("1e9999999999999999999").text == "1e9999999999999999999"
