"""Compiled grammars: random walks over allowed tokens, checked by `re`, by jsonschema and by hand."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
import torch

from ternvl.errors import RequestError
from ternvl.llm import LLM
from ternvl.params import Grammar, GrammarKind, SamplingParams
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.sampling.json_schema import expanded_size
from ternvl.sampling.tools import Tools
from ternvl.types import FinishReason, Prompt
from tests.fakes import tiny_tokenizer
from tests.sampling.walking import allowed, make_compiler, walk
from tests.server.fakes import tiny_llm, tiny_model

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "größe": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "c": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    "required": ["v"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return make_compiler()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return tiny_llm()


def test_a_grammar_is_compiled_once_for_each_salt(compiler: GrammarCompiler) -> None:
    grammar = Grammar("regex", "salt[0-9]", "guided_regex")
    first = compiler.compile(grammar, salt="one")
    assert compiler.compile(grammar, salt="one") is first
    assert compiler.compile(grammar, salt="two") is not first
    assert compiler.compile(grammar) is not first


def walks(compiler: GrammarCompiler, grammar: Grammar, count: int = 12) -> list[str]:
    texts = [walk(compiler, grammar, random.Random(seed)) for seed in range(count)]
    ended = [text for text in texts if text is not None]
    assert ended
    return ended


@pytest.mark.parametrize(
    "regex", [r"[a-c]{3}-\d{2}", "a|b*", "(é|日本)+", r"a/b\.c", "^[0-9]+$", "x\ny", r'"\\"', "", "(?i)no|yes", "[^a]"]
)
def test_texts_of_a_regex_match_it(compiler: GrammarCompiler, regex: str) -> None:
    for text in walks(compiler, Grammar.of("regex", regex)):
        assert re.fullmatch(regex, text)


@pytest.mark.parametrize("choices", [["yes", "no"], ["a", "ab", "abc"], ['say "hi"', "日本", "e\u0301", "\\n", "\n"]])
def test_a_choice_is_one_of_its_strings_and_any_of_them(compiler: GrammarCompiler, choices: list[str]) -> None:
    assert set(walks(compiler, Grammar.of("choice", choices), 60)) == set(choices)


@pytest.mark.parametrize("text", ['start: "a" b+\nb: "x" | "y"', 'root ::= "a" ("x" | "y")+'], ids=["lark", "gbnf"])
def test_texts_of_a_grammar_follow_it(compiler: GrammarCompiler, text: str) -> None:
    for found in walks(compiler, Grammar.of("lark", text)):
        assert re.fullmatch("a[xy]+", found)


@pytest.mark.parametrize(
    "schema",
    [
        CITY,
        TREE,
        True,
        {},
        {"enum": ["a", 1, None, {"k": [1, "ü"]}]},
        {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 17}, {"type": "string", "pattern": "^[x-z]{2}$"}]},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}, "required": ["a\nb"]},
        {"$defs": {"n": {"type": ["integer", "null"]}}, "type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}},
        {"type": "object", "properties": {"a": {"type": "integer"}}},  # no other spelling of the key is allowed
        {"type": "string", "format": "date", "title": "a day", "description": "of the year", "default": "2020-01-01"},
    ],
)
def test_texts_of_a_schema_fulfil_it(compiler: GrammarCompiler, schema: Any) -> None:
    for text in walks(compiler, Grammar.of("json_schema", schema)):
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


def test_a_json_object_is_one(compiler: GrammarCompiler) -> None:
    assert all(isinstance(json.loads(text), dict) for text in walks(compiler, Grammar("json_object")))


def test_an_escaped_key_is_not_allowed_beside_the_property_that_it_spells(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    matcher = compiler.compile(Grammar.of("json_schema", schema, closed=False)).matcher()
    for token_id in tiny_tokenizer().encode_text('{"\\'):
        assert token_id in allowed(compiler, matcher)
        matcher.accept(token_id)
    assert tiny_tokenizer().encode_text("u")[0] not in allowed(compiler, matcher)


def test_an_opening_tag_starts_a_call_whatever_its_tokens(compiler: GrammarCompiler) -> None:
    tokenizer, tools = tiny_tokenizer(), [{"type": "function", "function": {"name": "f"}}]
    for tag in (
        [tokenizer.full.token_to_id("<tool_call>")],
        [tokenizer.encode_text(char)[0] for char in "<tool_call>"],
    ):
        matcher = compiler.compile(Tools(tools).grammar()).matcher()
        for token_id in [*tokenizer.encode_text("hm <"), *tag]:
            assert token_id in allowed(compiler, matcher)
            matcher.accept(token_id)
        assert {tokenizer.token_bytes(token_id) for token_id in allowed(compiler, matcher)} == {b"\n"}


def test_free_text_may_contain_visible_tokens_but_no_control_token(compiler: GrammarCompiler) -> None:
    tokenizer = tiny_tokenizer()
    matcher = compiler.compile(Tools([{"type": "function", "function": {"name": "f"}}]).grammar()).matcher()
    free = set(allowed(compiler, matcher))
    assert {tokenizer.full.token_to_id(tag) for tag in ("<ref>", "</box>", "<tool_call>")} <= free
    assert free & tokenizer.hidden_ids == set(tokenizer.stop_ids)


UNSUPPORTED: list[tuple[GrammarKind, Any, str]] = [
    ("json_schema", {"type": "array", "uniqueItems": True}, '"uniqueItems"'),
    ("json_schema", {"properties": {"a": {"not": {"type": "string"}}}}, '"not"'),
    ("json_schema", {"type": "object", "x-guidance": {"lenient": True}, "if": True, "then": {}}, '"if"'),
    ("json_schema", {"type": "string", "format": "json-pointer"}, "json-pointer"),
    ("json_schema", {"oneOf": [{"minimum": 1}, {"maximum": 2}]}, '"oneOf" with branches that may overlap'),
    ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ("json_schema", {"type": "object", "minProperties": 2}, "minProperties"),
    ("json_schema", {"$ref": "https://example.com/x"}, "example.com"),
    ("json_schema", {"type": "strin"}, "strin"),
    ("json_schema", False, "no value fulfils"),
    ("json_schema", {"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
    ("json_schema", "{", "no JSON"),
    ("json_schema", [1], "must be a JSON Schema"),
    ("json_schema", {"$ref": "#"}, "recursive"),
    ("json_schema", {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]}, "recursive"),
    (
        "json_schema",
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "recursive",
    ),
    ("json_schema", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "recursive"),
    ("json_schema", {"properties": {f"p{i}": {} for i in range(10_000)}}, "1000 properties"),
    ("json_schema", {"anyOf": [{"items": {}}] * 6_000}, "5000 subschemas"),
    ("json_schema", {"type": "string", "pattern": "((a{1000}){1000}){1000}"}, "repetitions"),
    ("json_schema", {"const": "x" * 300_000}, "262144"),
    ("regex", "(?=a)a", "look-around"),
    ("regex", "a[", "unclosed"),
    ("regex", "[^\\s\\S]", "nothing"),
    ("regex", "a" * 40_000, "32768"),
    ("choice", [], "array of strings"),
    ("choice", ["a", ""], "none of them empty"),
    ("choice", [str(i) for i in range(2_000)], "2000 choices"),
    ("lark", "start: x", "unknown name"),
    ("lark", "start: a\na: a", "nothing"),
    ("lark", "start: <|im_start|>", "<|im_start|>"),
    ("lark", "start: a\na[max_tokens=3]: /x*/", "max_tokens"),
    ("lark", '%llguidance {"no_forcing": false}\nstart: "a"', "%llguidance"),
    ("lark", 'root ::= "a', "no grammar"),
    ("lark", "", "rule"),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("kind", "value", "named"), UNSUPPORTED)
def test_unsupported_grammars_are_refused_by_name(
    compiler: GrammarCompiler, kind: GrammarKind, value: Any, named: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(named)) as refusal:
        compiler.compile(Grammar.of(kind, value, param="response_format.json_schema.schema"))
    assert refusal.value.param == "response_format.json_schema.schema"
    assert str(refusal.value).startswith("response_format.json_schema.schema ")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "(a{1000}){1000}"),
        ("regex", "[ab]*a[ab]{200}"),
        ("lark", "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"'),
        ("json_schema", {"type": "array", "items": {"const": 1}, "minItems": 100_000}),
        ("json_schema", {"type": "string", "maxLength": 100_000}),
        ("json_schema", {"properties": {f"p{i}": {"type": "string"} for i in range(1_000)}}),
    ],
)
def test_a_large_grammar_that_is_served_is_served_in_time(
    compiler: GrammarCompiler, kind: GrammarKind, value: Any
) -> None:
    matcher = compiler.compile(Grammar.of(kind, value)).matcher()
    rng = random.Random(1)
    for _ in range(8):
        token_id = rng.choice([each for each in allowed(compiler, matcher) if each not in tiny_tokenizer().stop_ids])
        assert not matcher.accept(token_id)


@pytest.mark.parametrize(
    ("regex", "size"), [("abc", 3), ("a{3}b", 4), ("(ab){2,5}", 10), ("((a{10}){10}){10}", 1000), (r"[a{9}]\{3}", 4)]
)
def test_the_size_of_a_regex_counts_its_repetitions(regex: str, size: int) -> None:
    assert expanded_size(regex) == size


def test_the_tool_that_causes_an_error_is_named() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "fgh"]
    tools[1]["function"] |= {"strict": True, "parameters": {"properties": {"x": {"uniqueItems": True}}}}  # type: ignore[operator]
    for grammar in (Tools(tools).grammar(), Tools(tools, {"type": "function", "function": {"name": "g"}}).grammar()):
        with pytest.raises(RequestError, match="uniqueItems") as refusal:
            make_compiler().compile(grammar)
        assert refusal.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize("tools", [[{}], [{"function": {}}], [3]])
def test_invalid_tool_definitions_are_refused(tools: Any) -> None:
    with pytest.raises(RequestError, match="tool definitions"):
        Tools(tools).grammar()


def test_recent_grammars_are_compiled_once_and_older_ones_stay_usable(compiler: GrammarCompiler) -> None:
    held = compiler.compile(Grammar.of("regex", "kept"))
    for count, is_cached in ((30, True), (70, False)):
        for number in range(count):
            compiler.compile(Grammar.of("regex", f"other{count}x{number}"))
        again = compiler.compile(Grammar.of("regex", "kept", param="elsewhere"))
        assert (again is held) is is_cached
    (first,) = tiny_tokenizer().encode_text("k")
    assert first in allowed(compiler, held.matcher())


def test_tokens_that_the_tokenizer_lacks_are_never_allowed() -> None:
    padded = make_compiler(vocab_size=tiny_tokenizer().vocab_size + 37)
    matcher = padded.compile(Grammar.of("regex", "(?s:.*)")).matcher()
    assert max(allowed(padded, matcher)) < tiny_tokenizer().vocab_size


def prompt() -> Prompt:
    return Prompt(tuple(tiny_tokenizer().encode_text("Say something.")))


def answer(llm: LLM, grammar: Grammar, **params: Any) -> tuple[str, FinishReason]:
    output = llm.generate(prompt(), SamplingParams(grammar=grammar, **{"seed": 1, "max_tokens": 50, **params}))[0]
    return output.text, output.finish_reason


def test_an_answer_ends_where_its_grammar_does(llm: LLM) -> None:
    assert answer(llm, Grammar.of("regex", "abc")) == ("abc", FinishReason.STOP)
    assert answer(llm, Grammar.of("regex", "abc"), max_tokens=3) == ("abc", FinishReason.STOP)
    assert answer(llm, Grammar.of("regex", "abc"), max_tokens=2) == ("ab", FinishReason.LENGTH)
    assert answer(llm, Grammar.of("regex", "abc"), min_tokens=9) == ("abc", FinishReason.STOP)
    assert answer(llm, Grammar.of("regex", "abc"), ignore_eos=True) == ("abc", FinishReason.STOP)


def test_ignore_eos_continues_for_as_long_as_the_grammar_allows(llm: LLM) -> None:
    assert answer(llm, Grammar.of("regex", "a*"), ignore_eos=True, max_tokens=30) == ("a" * 30, FinishReason.LENGTH)
    assert answer(llm, Grammar.of("regex", "a{0,4}"), ignore_eos=True) == ("aaaa", FinishReason.STOP)
    for seed in range(6):
        text, reason = answer(llm, Grammar.of("regex", "a*"), min_tokens=7, max_tokens=30, seed=seed)
        assert len(text) >= 7
        assert reason is (FinishReason.LENGTH if len(text) == 30 else FinishReason.STOP)


def test_stop_token_ids_and_stop_strings_end_an_answer_early(llm: LLM) -> None:
    (b,) = tiny_tokenizer().encode_text("b")
    assert answer(llm, Grammar.of("regex", "abc"), stop_token_ids=(b,)) == ("a", FinishReason.STOP)
    assert answer(llm, Grammar.of("regex", "abc"), stop="b") == ("a", FinishReason.STOP)
    assert answer(llm, Grammar.of("regex", "abc"), stop_token_ids=(b,), min_tokens=2) == ("a", FinishReason.STOP)


def test_log_probabilities_are_those_of_the_allowed_tokens(llm: LLM) -> None:
    params = SamplingParams(grammar=Grammar.of("regex", "[ab]"), seed=1, logprobs=5)
    (logprobs,) = llm.generate(prompt(), params)[0].logprobs or ()
    ids = {token_id for token_id, _ in logprobs.top}
    assert ids == {tiny_tokenizer().encode_text("a")[0], tiny_tokenizer().encode_text("b")[0]}
    assert torch.tensor([value for _, value in logprobs.top]).exp().sum() == pytest.approx(1)


def test_the_engine_answers_as_the_reference_does_beside_other_requests() -> None:
    grammars = [
        Grammar.of("json_schema", CITY),
        None,
        Grammar.of("json_schema", TREE),
        Grammar.of("choice", ["a", "b"]),
    ]
    params = [
        SamplingParams(grammar=grammars[seed % 4], seed=seed, max_tokens=25, temperature=seed % 3, n=1 + seed % 2)
        for seed in range(8)
    ]
    reference = LLM.from_parts(tiny_model(), tiny_tokenizer(), reference=True, max_model_len=64)
    crowded = tiny_llm(
        max_model_len=64, block_size=4, kv_cache_memory=40 * 4 * 2 * 2 * 16 * 4, max_num_batched_tokens=16
    )
    expected = reference.generate([prompt()] * 8, params)
    found = crowded.generate([prompt()] * 8, params)
    assert [[each.token_ids for each in one.outputs] for one in found] == [
        [each.token_ids for each in one.outputs] for one in expected
    ]
    assert [one.finish_reason for one in found] == [one.finish_reason for one in expected]
    assert crowded.engine.stats().num_preemptions > 0


def test_a_grammar_at_a_dead_end_fails_only_its_own_request(llm: LLM) -> None:
    dead = Grammar.of("lark", 'start: "a" b\nb: "x" b')
    params = [SamplingParams(grammar=dead, max_tokens=5), SamplingParams(max_tokens=5)]
    outputs = llm.generate([prompt()] * 2, params)
    assert [len(output.token_ids) for output in outputs] == [5, 5]


def test_an_engine_refuses_a_grammar_that_is_not_compiled() -> None:
    from tests.engine import tiny

    engine = tiny.make_engine(tiny.make_model())
    with pytest.raises(RequestError, match="grammar is not compiled"):
        engine.add(
            tiny.Request("r", tiny.text_prompt(random.Random(1), 3), SamplingParams(grammar=Grammar("json_object")))
        )
    assert not engine.has_work


@pytest.mark.parametrize("kind", ["yaml", 3])
def test_a_grammar_of_an_unknown_kind_is_refused(kind: Any) -> None:
    with pytest.raises(RequestError, match="kind"):
        Grammar(kind)
    with pytest.raises(RequestError, match="must be a Grammar"):
        SamplingParams(grammar=kind)


def test_a_grammar_and_a_list_of_allowed_tokens_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="allowed_token_ids") as refusal:
        SamplingParams(grammar=Grammar("json_object"), allowed_token_ids=(1, 2))
    assert refusal.value.param == "allowed_token_ids"


def test_a_grammar_error_is_the_requests_own(llm: LLM) -> None:
    compiled = llm.grammars.compile(Grammar.of("regex", "broken"))
    compiled._matcher.consume_token(tiny_tokenizer().encode_text("z")[0])  # a matcher in its error state
    with pytest.raises(RequestError, match="cannot be followed") as failure:
        answer(llm, Grammar.of("regex", "broken"))
    assert failure.value.code == "grammar_limit"
