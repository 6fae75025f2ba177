"""Rules that no grammar enforces are checked once a call is complete, and no schema makes that fail or take long."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ternvl.params import Grammar
from ternvl.sampling.bounded_keywords import NotCheckedError, compile_regex
from ternvl.sampling.call_rules import CallRules, Verdict
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.sampling.tools import Tools
from tests.sampling.test_schema_rules import ZOD_EMAIL
from tests.sampling.walking import make_compiler

PATH = "tools[0].function.parameters.properties.v"


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return make_compiler()


def parameters(rules: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"v": rules}, "required": ["v"], **more}


def rules_of(compiler: GrammarCompiler, *schemas: dict[str, Any], names: str = "f") -> CallRules:
    functions = [{"name": names[i % len(names)], "parameters": schema} for i, schema in enumerate(schemas)]
    grammar = Tools([{"type": "function", "function": function} for function in functions], "required").grammar()
    assert isinstance(grammar, Grammar)
    return CallRules(grammar, compiler.compile(grammar).unenforced)


def verdict(compiler: GrammarCompiler, rules: Any, text: str, **more: Any) -> Verdict | None:
    return rules_of(compiler, parameters(rules, **more)).check("f", f'{{"v": {text}}}')


OLD = {"$schema": "http://json-schema.org/draft-07/schema#"}
RULES: list[tuple[Any, str, list[str], list[str]]] = [
    ({"type": "string", "pattern": ZOD_EMAIL}, "pattern", ['"a.b@c.de"'], ['"a..b@c.de"', '".a@c.de"']),
    ({"type": "string", "pattern": r"^(.)\1$"}, "pattern", ['"aa"'], ['"ab"']),
    ({"type": "string", "pattern": r"^(?=\d)\w+$"}, "pattern", ['"1a"'], ['"٣a"', '"1é"', '"1a\\n"']),
    ({"type": "array", "uniqueItems": True}, "uniqueItems", ["[1, true, 0, false]", "[[1], [true]]"], ["[1, 1.0]"]),
    ({"type": "array", "uniqueItems": True}, "uniqueItems", ['[{"a": 1}, {"a": 2}]'], ['[{"a": 1}, {"a": 1.0}]']),
    ({"type": "array", "uniqueItems": True}, "uniqueItems", ["[0.12345678901234567890, 0.1234567890123456789012]"], []),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames", ['{"a": 1}', "{}"], ['{"b": 1}']),
    ({"type": "string", "format": "json-pointer"}, "format", ['"/a/~0"', '""'], ['"a"', '"/~2"']),
    ({"type": "string", "format": "relative-json-pointer"}, "format", ['"0#"', '"1/a"'], ['"/a"', '"01"']),
    ({"type": "string", "format": "idn-email"}, "format", ['"é@b"'], ['"b"']),
    ({"oneOf": [{"minimum": 1}, {"type": "integer"}]}, "oneOf", ["0", "1.5"], ["5"]),
    ({"type": "number", "multipleOf": 1e10}, "multipleOf", ["2e10", "1e400"], ["5"]),
    ({"type": "object", "minProperties": 3}, "minProperties", ['{"a":1,"b":2,"c":3}'], ["{}"]),
    ({"not": {"type": "string"}}, "not", ["1"], ['"a"']),
    (
        {"type": "object", "patternProperties": {"(?=a)": {"type": "null"}}},
        "patternProperties.(?=a)",
        ['{"b": 1}', '{"ba": null}'],
        ['{"ba": 1}'],
    ),
    ({"type": "array", "contains": {"const": 1}}, "contains", ["[2, 1]"], ["[]", "[2]"]),
    ({"anyOf": [{"uniqueItems": True}, {"type": "null"}]}, "anyOf[0].uniqueItems", ["null", "[1, 2]"], ["[1, 1]"]),
    ({"if": {"type": "string"}, "then": {"minLength": 3}}, "if", ['"abc"', "1"], ['"a"']),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired", ['{"b": 1}'], ['{"a": 1}']),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies", ['{"a": 1, "b": 1}'], ['{"a": 1}']),
]


@pytest.mark.parametrize(("rules", "name", "holds", "breaks"), RULES)
def test_a_call_breaks_a_rule_or_holds_it(
    compiler: GrammarCompiler, rules: Any, name: str, holds: list[str], breaks: list[str]
) -> None:
    for more in ({}, OLD):
        if more and name == "dependentRequired":  # a keyword of later drafts
            continue
        assert [text for text in holds if verdict(compiler, rules, text, **more) != Verdict()] == []
        broken = Verdict(broken=(f"{PATH}.{name}",))
        assert [text for text in breaks if verdict(compiler, rules, text, **more) != broken] == []


def test_a_rule_behind_a_reference_has_the_path_that_the_request_was_told(compiler: GrammarCompiler) -> None:
    unique = {"type": "array", "uniqueItems": True, "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}
    schema = parameters({"$ref": "#/$defs/a"}, **{"$defs": {"a": unique}})
    rules = rules_of(compiler, schema)
    (told,) = compiler.compile(rules._grammar).unenforced
    for text in ("[[], []]", "[null, [[null, null]]]"):
        assert rules.check("f", f'{{"v": {text}}}') == Verdict(broken=(told,)), text
    assert rules.check("f", '{"v": [null, [[], [[]]]]}') == Verdict()


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"type": "string", "format": "binary"}, '"a"'),
        ({"type": "string", "format": "uri-reference"}, '"a"'),
        ({"$ref": "https://example.com/x"}, "1"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "1"),
        ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]}, '{"b": 1}'),
        ({"type": "string", "pattern": r"^(?!a)\cJ"}, '"a"'),
        ({"type": "string", "pattern": "(?=a)" + "b?" * 2_000}, '"a"'),
        ({"type": "array", "uniqueItems": True}, f"[{'9' * 5_000}]"),
        ({"type": "array", "uniqueItems": True}, "[1e99999999999999999999]"),
        ({"type": "array", "uniqueItems": True}, "[" * 5_000 + "]" * 5_000),
        ({"type": "number", "multipleOf": 1e10}, "1e99999"),
        ({"not": {"type": "no such type"}}, "1"),
        ({"not": {"$ref": "#/$defs/missing"}}, "1"),
        ({"not": {"$ref": "file:///etc/passwd"}}, "1"),
        ({"not": {"unevaluatedItems": False}}, "[1]"),
        ({"contains": 3, "type": "array"}, "[1]"),
    ],
)
def test_what_cannot_be_checked_is_named(compiler: GrammarCompiler, rules: Any, text: str) -> None:
    (told, *_) = rules_of(compiler, parameters(rules))._unenforced
    assert verdict(compiler, rules, text) == Verdict(unchecked=(told,))


def test_a_rule_that_does_not_concern_a_call_is_neither_broken_nor_unchecked(compiler: GrammarCompiler) -> None:
    optional = {"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}}
    assert rules_of(compiler, optional).check("f", "{}") == Verdict()
    assert rules_of(compiler, parameters({"type": "integer"})).check("f", '{"v": 1}') == Verdict()


def test_a_call_that_was_cut_is_not_judged(compiler: GrammarCompiler) -> None:
    assert verdict(compiler, {"type": "array", "uniqueItems": True}, "[1, 1") is None
    assert rules_of(compiler, parameters({"not": {}})).check("f", "") is None


def test_of_tools_with_one_name_a_call_may_match_any(compiler: GrammarCompiler) -> None:
    unique = parameters({"type": "array", "uniqueItems": True})
    number, wide = parameters({"type": "integer"}), parameters({"type": "array"})
    assert rules_of(compiler, unique, wide).check("f", '{"v": [1, 1]}') == Verdict()
    assert rules_of(compiler, number, unique).check("f", '{"v": [1, 1]}') == Verdict(
        broken=("tools[1].function.parameters.properties.v.uniqueItems",)
    )
    assert rules_of(compiler, wide, unique, names="fg").check("g", '{"v": [1, 1]}') == Verdict(
        broken=("tools[1].function.parameters.properties.v.uniqueItems",)
    )


BOMB = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * 2} for i in range(1, 40)} | {"a0": {}}
LONG = json.dumps("a" * 4_000 + "b")
LONG_KEY = f"{{{LONG}: 1}}"
SLOW: list[tuple[Any, str, dict[str, Any]]] = [
    ({"type": "string", "pattern": r"^(?!x)(a|aa)+$"}, LONG, {}),
    ({"type": "string", "not": {"pattern": r"^(a|aa)+$"}}, LONG, {}),
    ({"type": "object", "not": {"patternProperties": {"^(a|aa)+$": False}}}, LONG_KEY, {}),
    ({"not": {"additionalProperties": False, "patternProperties": {"^(a|aa)+$": {}}}}, LONG_KEY, {}),
    ({"not": {"$schema": OLD["$schema"], "pattern": r"^(a|aa)+$"}}, LONG, {}),
    ({"not": {"$ref": "#/$defs/a39"}}, "1", {"$defs": BOMB}),
    ({"not": {"anyOf": [{"allOf": [{"not": {"type": "null"}}] * 80}] * 80}}, "[" + "0," * 2_000 + "1]", {}),
    ({"type": "array", "not": {"items": {"enum": list(range(20_000))}}}, json.dumps([20_000] * 5_000), {}),
]


@pytest.mark.parametrize(("rules", "text", "more"), SLOW)
def test_a_schema_that_takes_long_is_given_up(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, rules: Any, text: str, more: dict[str, Any]
) -> None:
    """Most of these would take centuries, which the test's timeout tells; the others, half a second."""
    monkeypatch.setattr("ternvl.sampling.call_rules._SECONDS", 0.02)
    checked = rules_of(compiler, parameters(rules, **more))
    found = [checked.check("f", f'{{"v": {text}}}') for _ in range(20)]
    assert found[-1] is not None
    assert not found[-1].broken


def test_many_equal_and_unequal_items_take_no_time_that_grows_with_their_square(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ternvl.sampling.call_rules._SECONDS", 20.0)  # a busy machine; the square would take minutes
    items: list[Any] = [{"a": [i, str(i)]} for i in range(3_000)]
    assert verdict(compiler, {"type": "array", "uniqueItems": True}, json.dumps(items)) == Verdict()
    broken = verdict(compiler, {"type": "array", "uniqueItems": True}, json.dumps([*items, items[0]]))
    assert broken is not None
    assert broken.broken


def test_random_calls_are_judged_as_by_enumeration(compiler: GrammarCompiler) -> None:
    """uniqueItems, contains and propertyNames beside each other, by three lines of Python each."""
    schema = {
        "type": "object",
        "properties": {"u": {"type": "array", "uniqueItems": True}, "c": {"type": "array", "contains": {"const": 2}}},
        "propertyNames": {"enum": ["u", "c"]},
        "additionalProperties": True,
    }
    rules, rng, seen = rules_of(compiler, schema), random.Random(4), set[tuple[str, ...]]()
    for _ in range(200):
        value = {name: [rng.randrange(4) for _ in range(rng.randrange(3))] for name in rng.sample("ucx", 2)}
        expected = {".propertyNames"} if "x" in value else set()
        expected |= {".properties.u.uniqueItems"} if len(set(value.get("u", []))) < len(value.get("u", [])) else set()
        expected |= {".properties.c.contains"} if 2 not in value.get("c", [2]) else set()
        found = rules.check("f", json.dumps(value))
        assert found is not None
        assert {path.removeprefix("tools[0].function.parameters") for path in found.broken} == expected, value
        assert not found.unchecked
        seen.add(found.broken)
    assert len(seen) > 4


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        (r"^\d$", ["1"], ["٣", "1\n"]),
        (r"^[\d\-]$", ["1", "-"], ["٣"]),
        (r"^\w$", ["_"], ["é"]),
        (r"^[^\w]$", ["é"], ["a"]),
        (r"^\W$", ["é"], ["a"]),
        (r"^.$", ["a", "é"], ["\n", "\u2028"]),
        (r"^[.$]$", [".", "$"], ["a"]),
        (r"^a{2}$", ["aa"], ["a{2}"]),
        (r"^\p{Lu}[\p{Lu}x]$", ["ÉÉ", "Éx"], ["éÉ"]),
        (r"^[[a]$", ["[", "a"], ["b"]),
        (r"^\u00e9\/\.$", ["é/."], ["e/."]),
        (r"^(?<first>a)(?:b)(?=c)(?!d)(?<=b)(?<!a)c$", ["abc"], ["abd"]),
    ],
)
def test_a_regex_means_what_ecma_262_says(pattern: str, matches: list[str], others: list[str]) -> None:
    compiled = compile_regex(pattern)
    assert [text for text in matches if not compiled.search(text)] == []
    assert [text for text in others if compiled.search(text)] == []


@pytest.mark.parametrize(
    "pattern",
    ["a{e}", "{", r"\Z", r"\A", "(?i)a", "(?>a)", "(?P<a>b)", "[]", "[^]a", r"[\W]", r"\k<a>", r"\N{DIGIT ONE}", r"\X"],
)
def test_a_regex_that_would_mean_something_else_is_not_read(pattern: str) -> None:
    with pytest.raises(NotCheckedError):
        compile_regex(pattern)
