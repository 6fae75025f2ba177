"""Objects of schemas are closed, idle rules are dropped, and what a tool's schema cannot enforce is named."""

from __future__ import annotations

from typing import Any

import pytest

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.sampling.tools import Tools
from tests.sampling.walking import accepts, make_compiler

ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
PATH = "tools[0].function.parameters"


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return make_compiler()


def tool_grammar(parameters: Any, *, strict: bool = False, **more: Any) -> Grammar:
    function = {"name": "f", "parameters": parameters, "strict": strict}
    grammar = Tools([{"type": "function", "function": function}], "required", parallel=False, **more).grammar()
    assert grammar is not None
    return grammar


def calls(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    "rules",
    [
        {"uniqueItems": False},
        {"uniqueItems": True, "maxItems": 1},
        {"propertyNames": {"type": "string", "title": "Key"}},
        {"propertyNames": True},
        {"$anchor": "here", "$dynamicAnchor": "here", "$comment": "x", "$vocabulary": {}},
        {"title": "A", "default": 1, "examples": [1], "deprecated": True, "readOnly": True, "writeOnly": False},
        {"format": "binary"},
        {"type": "string", "format": "phone"},
        {"dependentRequired": {}, "then": {}, "minContains": 2, "unevaluatedProperties": True, "not": False},
        {"$schema": "my-dialect"},
        {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False},
        {"contentEncoding": "base64", "discriminator": {"propertyName": "kind"}, "x-mine": {"a": 1}},
    ],
)
def test_rules_that_constrain_nothing_are_no_reason_to_refuse(compiler: GrammarCompiler, rules: dict[str, Any]) -> None:
    compiler.compile(Grammar.of("json_schema", {"properties": {"v": rules}}))
    compiler.compile(tool_grammar({"properties": {"v": rules}}, strict=True))


def test_a_format_that_nobody_defines_is_named(compiler: GrammarCompiler) -> None:
    rules = {"properties": {"a": {"type": "string", "format": "binary"}, "b": {"type": "integer", "format": "int64"}}}
    for strict in (False, True):
        assert compiler.compile(tool_grammar(rules, strict=strict)).unenforced == (f"{PATH}.properties.a.format",)
    assert compiler.compile(Grammar.of("json_schema", rules)).unenforced == (".properties.a.format",)


@pytest.mark.parametrize(
    ("rules", "path", "accepted", "refused"),
    [
        ({"type": "string", "pattern": ZOD_EMAIL}, ".pattern", ['"..a@b.de"', '"..a@b.de"'], ['"a@b"']),
        ({"type": "string", "pattern": r"^(.)\1$"}, ".pattern", ['"ab"'], ["3"]),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, ".uniqueItems", ["[1,1]"], ['["a"]']),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, ".propertyNames", ['{"b":1}'], ["1"]),
        ({"type": "string", "format": "json-pointer"}, ".format", ['"a"'], ["1"]),
        ({"oneOf": [{"minimum": 1}, {"type": "integer"}]}, ".oneOf", ["1", "5"], []),
        ({"type": "number", "multipleOf": 1e10}, ".multipleOf", ["5"], ['"a"']),
        ({"type": "object", "minProperties": 3}, ".minProperties", ["{}"], ["1"]),
        ({"$ref": "https://example.com/x"}, ".$ref", ["1", '"a"'], []),
        ({"not": {"type": "string"}}, ".not", ["1", '"a"'], []),
        (
            {"type": "object", "patternProperties": {"(?=a)": {}, "^b": {"type": "null"}}},
            ".patternProperties.(?=a)",
            ['{"b":null}'],
            ['{"b":1}'],
        ),
    ],
)
def test_without_strict_a_tool_enforces_what_can_be_and_names_the_rest(
    compiler: GrammarCompiler, rules: dict[str, Any], path: str, accepted: list[str], refused: list[str]
) -> None:
    grammar = tool_grammar({"type": "object", "properties": {"v": rules}, "required": ["v"]})
    assert compiler.compile(grammar).unenforced == (f"{PATH}.properties.v{path}",)
    assert [text for text in accepted if not accepts(compiler, grammar, calls(f'{{"v": {text}}}'))] == []
    assert [text for text in refused if accepts(compiler, grammar, calls(f'{{"v": {text}}}'))] == []
    with pytest.raises(RequestError) as refusal:
        compiler.compile(tool_grammar({"type": "object", "properties": {"v": rules}}, strict=True))
    assert refusal.value.param == PATH
    assert "coerce_one_of" not in str(refusal.value)


@pytest.mark.parametrize("rules", [{"type": "strin"}, {"$ref": "#"}, {"minimum": 3, "maximum": 2, "type": "integer"}])
def test_a_tool_whose_schema_is_invalid_is_refused(compiler: GrammarCompiler, rules: Any) -> None:
    with pytest.raises(RequestError):
        compiler.compile(tool_grammar({"type": "object", "properties": {"v": rules}, "required": ["v"]}))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": "#", "patternProperties": {"a": {"const": 2**60}}},
        {"required": [{}], "properties": {"a": {"const": 2**60}}},
        {"anyOf": [{"const": 2**60}, 3]},
        {"items": {"const": 2**60}, "minItems": "a"},
        {"type": 3, "format": "x", "required": 3, "properties": {"a": {}}},
        '{"anyOf":[' * 400 + "{}" + "]}" * 400,
    ],
)
def test_a_schema_with_values_of_the_wrong_type_is_refused(compiler: GrammarCompiler, schema: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        compiler.compile(Grammar.of("json_schema", schema, param="guided_json"))
    assert refusal.value.param == "guided_json"


A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        ({"type": "object", **A}, ['{"a":1}', "{}"], ['{"x":1}', '{"a":1,"x":1}']),
        ({"type": "object", **A, "additionalProperties": True}, ['{"a":1,"x":1}'], []),
        ({"type": "object"}, ['{"x":1}'], []),
        ({"type": "object", "properties": {}}, ["{}"], ['{"x":1}']),
        ({"type": "object", "properties": {}, "required": ["z"]}, ['{"z":1}'], ["{}", '{"x":1}']),
        ({"type": "object", "properties": {}, "additionalProperties": {}}, ['{"x":1}'], []),
        (
            {"type": "object", **A, "patternProperties": {"^x": {"type": "null"}}},
            ['{"xy":null}'],
            ['{"y":1}', '{"x":1}'],
        ),
        ({"type": "object", **A, "required": ["z"]}, ['{"a":1,"z":2}', '{"z":"s"}'], ["{}", '{"z":1,"x":1}']),
        ({"type": "object", "properties": {"a": {"type": "object", **B}}}, ['{"a":{"b":1}}'], ['{"a":{"x":1}}']),
        (
            {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "object", **A}}},
            ['[{"a":1}]'],
            ['[{"x":1}]'],
        ),
        ({"anyOf": [{"type": "object", **A}, {"type": "object", **B}]}, ['{"a":1}', '{"b":1}'], ['{"x":1}']),
        (
            {"type": "object", "allOf": [{**A, "required": ["a"]}, {**B, "required": ["b"]}]},
            ['{"a":1,"b":1}'],
            ['{"a":1}'],
        ),
        ({"type": "object", **A, "anyOf": [{**B, "required": ["b"]}, {"required": ["a"]}]}, ['{"a":1,"b":1}'], []),
    ],
)
def test_objects_have_the_listed_properties_only(
    compiler: GrammarCompiler, schema: dict[str, Any], accepted: list[str], refused: list[str]
) -> None:
    grammar = Grammar.of("json_schema", schema)
    assert [text for text in accepted if not accepts(compiler, grammar, text)] == []
    assert [text for text in refused if accepts(compiler, grammar, text)] == []


def test_objects_are_open_on_request(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", **A}
    assert accepts(compiler, Grammar.of("json_schema", schema, closed=False), '{"x":1}')
    assert accepts(compiler, tool_grammar(schema, closed=False), calls('{"x": 1}'))
    assert not accepts(compiler, tool_grammar(schema), calls('{"x": 1}'))


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (r'root ::= "\u00e9" [\u0061-\u0063] "\U0001F600\x41"', "éb😀A"),
        (r'root ::= "\xe9\u000a\u0022\\u0041" [\x5e\u005d\u002d]', 'é\n"\\u0041]'),
        ('?start: "a" b\n?b: "c"', "ac"),
        ('!start: "a"', "a"),
    ],
)
def test_escapes_of_gbnf_and_marks_of_lark(compiler: GrammarCompiler, grammar: str, text: str) -> None:
    assert accepts(compiler, Grammar.of("lark", grammar), text)


@pytest.mark.parametrize("escape", [r"\ud83d", r"\U00110000"])
def test_an_escape_that_is_no_character_is_refused(compiler: GrammarCompiler, escape: str) -> None:
    with pytest.raises(RequestError, match="not a character"):
        compiler.compile(Grammar.of("lark", f'root ::= "{escape}"'))
