"""Grammars of every kind in the language that llguidance compiles.

Tool calls have the form of `ternvl.tool_form`; several calls stand on lines of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from ternvl import exact_json
from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling import exact_rules, json_schema, schema_rules
from ternvl.sampling.json_schema import SchemaError
from ternvl.tool_form import START, TAIL, head

MAX_TEXT = 256 * 1024
"""Bytes of a grammar's text."""
MAX_CHOICES = 1_000
MAX_REGEX, MAX_LARK = 32 * 1024, 64 * 1024

_UNFORCED = '\n%llguidance {"no_forcing": true}\n'
"""Without it, llguidance writes out all text that the grammar forces at once, which may be millions of characters."""
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*')
_LARK = re.compile(r"(?m)^\s*(?:%llguidance\b|[?!]*start\s*:(?!:=))")
"""A Lark grammar, not one of llama.cpp's GBNF."""
_ESCAPE = re.compile(r"\\(?:(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2})|.)", re.DOTALL)
_NOT_SERVED = re.compile(r"\b(?:max_tokens|temperature|stop)\s*=|<[^<>\n]+>|%llguidance\s*\{\s*[^}\s]|%import")


@dataclass(frozen=True, slots=True)
class Source:
    """A grammar in llguidance's own language."""

    text: str
    unenforced: tuple[str, ...] = ()
    """Paths of the rules that the grammar does not enforce: within the request for tools, else within the schema."""


def parts(grammar: Grammar) -> list[Grammar]:
    """Return the grammars within a grammar of tools, each of which must be served by itself."""
    described = exact_json.loads(grammar.text) if grammar.kind == "tools" else {}
    if not described or grammar.param == described["tools"][0]["path"]:  # a part itself
        return []
    answer = [Grammar(**described["answer"])] if described["answer"] else []
    single = described | {"required": True, "answer": None}
    tools = [Grammar.of("tools", single | {"tools": [tool]}, param=tool["path"]) for tool in described["tools"]]
    return answer + tools


def source(grammar: Grammar) -> Source:
    """Return a grammar in llguidance's own language. Raises RequestError that names the field."""
    if len(grammar.text) > MAX_TEXT:
        raise RequestError(
            f"{grammar.param} has {len(grammar.text)} characters, more than the {MAX_TEXT} that are allowed.",
            param=grammar.param,
        )
    try:
        return _SOURCES[grammar.kind](grammar)
    except SchemaError as error:
        raise _refusal(grammar.param, error) from error
    except RecursionError as error:
        raise _refusal(grammar.param, SchemaError("is nested too deeply")) from error


def _json_schema(grammar: Grammar) -> Source:
    schema, unenforced = _checked(grammar)
    return Source(exact_rules.rules("start", schema, inline=False), unenforced)


def _checked(grammar: Grammar) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the schema of a grammar and the paths within it of the rules that are not enforced."""
    schema = _load(grammar)
    paths = schema_rules.prepare(schema, closed=grammar.closed, lenient=False)
    return json_schema.check(schema), tuple(paths)


def _json_object(grammar: Grammar) -> Source:
    return Source(exact_rules.rules("start", {"type": "object"}, inline=False))


def _regex(grammar: Grammar) -> Source:
    _check_size(grammar, MAX_REGEX)
    if not grammar.text:
        return Source('start: ""')
    regex = regex_to_lark(grammar.text.replace("\n", r"\n").replace("\r", r"\r"), "d")
    return Source(f"start: /{regex}/{_UNFORCED}")


def _choice(grammar: Grammar) -> Source:
    return Source("start: CHOICE\n" + _choice_rule(grammar))


def _choice_rule(grammar: Grammar) -> str:
    choices = _load(grammar)
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise SchemaError("must be an array of strings, none of them empty")
    if len(choices) > MAX_CHOICES:
        raise SchemaError(f"has {len(choices)} choices, more than the {MAX_CHOICES} that are allowed")
    return f"CHOICE: {' | '.join(map(json.dumps, choices))}\n"


def _lark(grammar: Grammar) -> Source:
    _check_size(grammar, MAX_LARK)
    try:
        text = grammar.text if _LARK.search(grammar.text) else gbnf_to_lark(_without_escapes(grammar.text))
    except SchemaError:
        raise
    except Exception as error:  # the converter from GBNF raises its own errors and bare exceptions
        raise SchemaError(f"is no grammar that can be read: {str(error).splitlines()[0][:200]}") from error
    unserved = _NOT_SERVED.search(_QUOTED.sub('""', text))
    if unserved:
        raise SchemaError(f"uses {unserved.group().strip()!r}, which is not supported")
    return Source(text + _UNFORCED)


def _without_escapes(gbnf: str) -> str:
    """Return a GBNF grammar whose numeric escapes are characters, or two digits for those of ASCII.

    llguidance's converter would drop leading zeros, which changes the character.
    """

    def character(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        code = int(match[1][1:], 16)
        if code < 0x80:
            return f"\\x{code:02x}"
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise SchemaError(f"has the escape {match[0]!r}, which is not a character")
        return chr(code)

    return _ESCAPE.sub(character, gbnf)


def _tools(grammar: Grammar) -> Source:
    described = exact_json.loads(grammar.text)
    calls = [_call(index, tool, described["closed"]) for index, tool in enumerate(described["tools"])]
    unenforced = tuple(path for call in calls for path in call.unenforced)
    names = " | ".join(f"call_{index}" for index in range(len(calls)))
    more = f'("\\n{START}" body)*' if described["parallel"] else ""
    rules = [f"body: {names}", *(call.text for call in calls)]
    if described["required"]:
        return Source("\n".join([f'start: "{START}" body {more}', *rules]), unenforced)
    if described["answer"]:
        answer = _answer(Grammar(**described["answer"]))
        start = f'start: answer | "{START}" body {more}'
        return Source("\n".join([start, answer.text, *rules]), answer.unenforced + unenforced)
    text = [
        f"start: TEXT | head body {more}",
        f"TEXT: /(?s:.*)/ & ~/(?s:.*){START}(?s:.*)/",
        f"head[lazy]: /(?s:.*){START}/",
    ]
    return Source("\n".join(text + rules), unenforced)


def _call(index: int, tool: Mapping[str, Any], closed: bool) -> Source:
    """The rules of a call of one tool, after the opening tag."""
    begin = head(tool["name"]).removeprefix(START)
    parameters = {"type": "object", "properties": {}} if tool["parameters"] is None else tool["parameters"]
    try:
        paths = schema_rules.prepare(parameters, closed=closed, lenient=not tool["strict"])
        schema = json_schema.as_object(parameters)
        arguments = exact_rules.rules(f"arguments_{index}", schema, inline=True)
    except SchemaError as error:
        raise _refusal(tool["path"], error) from error
    text = f"call_{index}: {json.dumps(begin)} arguments_{index} {json.dumps(TAIL)}\n{arguments}"
    return Source(text, tuple(tool["path"] + path for path in paths))


def _answer(grammar: Grammar) -> Source:
    """The rules of an answer without calls."""
    try:
        if grammar.kind == "choice":
            return Source("answer: CHOICE\n" + _choice_rule(grammar))
        schema, unenforced = ({"type": "object"}, ()) if grammar.kind == "json_object" else _checked(grammar)
        paths = tuple(grammar.param + path for path in unenforced)
        return Source(exact_rules.rules("answer", schema, inline=False), paths)
    except SchemaError as error:
        raise _refusal(grammar.param, error) from error


def _refusal(param: str, error: SchemaError) -> RequestError:
    return RequestError(f"{param} {error}.", param=param, code="unsupported_schema")


def _load(grammar: Grammar) -> Any:
    try:
        return exact_json.loads(grammar.text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"is no JSON: {error}") from error


def _check_size(grammar: Grammar, limit: int) -> None:
    if len(grammar.text) > limit:
        raise SchemaError(f"has {len(grammar.text)} characters, more than the {limit} that are allowed")


_SOURCES = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
    "tools": _tools,
}
