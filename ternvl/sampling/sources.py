"""Grammars of every kind in the language that llguidance compiles.

Tool calls have the form of `ternvl.tool_form`; several calls stand on lines of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling import json_schema
from ternvl.sampling.json_schema import SchemaError
from ternvl.tool_form import START, TAIL, head

MAX_TEXT = 256 * 1024
"""Bytes of a grammar's text."""
MAX_CHOICES = 1_000
MAX_REGEX, MAX_LARK = 32 * 1024, 64 * 1024

_UNFORCED = '\n%llguidance {"no_forcing": true}\n'
"""Without it, llguidance writes out all text that the grammar forces at once, which may be millions of characters."""
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*')
_NOT_SERVED = re.compile(r"\b(?:max_tokens|temperature|stop)\s*=|<[^<>\n]+>|%llguidance\s*\{\s*[^}\s]|%import")


def parts(grammar: Grammar) -> list[Grammar]:
    """Return the grammars within a grammar of tools, each of which must be served by itself."""
    if grammar.kind != "tools":
        return []
    described = json.loads(grammar.text)
    answer = [Grammar(**described["answer"])] if described["answer"] else []
    schemas = [Grammar.of("json_schema", _arguments(tool), param=tool["path"]) for tool in described["tools"]]
    return answer + schemas


def source(grammar: Grammar) -> str:
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


def _json_schema(grammar: Grammar) -> str:
    return _with_options(json_schema.check(_load(grammar)))


def _json_object(grammar: Grammar) -> str:
    return _with_options({"type": "object"})


def _with_options(schema: Mapping[str, Any]) -> str:
    options: Any = json_schema.options(inline=False)
    own = {name: value for name, value in schema.items() if name != "x-guidance"}
    return LLMatcher.grammar_from_json_schema(json.dumps(own), None, options)


def _regex(grammar: Grammar) -> str:
    _check_size(grammar, MAX_REGEX)
    if not grammar.text:
        return 'start: ""'
    regex = regex_to_lark(grammar.text.replace("\n", r"\n").replace("\r", r"\r"), "d")
    return f"start: /{regex}/{_UNFORCED}"


def _choice(grammar: Grammar) -> str:
    return "start: CHOICE\n" + _choice_rule(grammar)


def _choice_rule(grammar: Grammar) -> str:
    choices = _load(grammar)
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise SchemaError("must be an array of strings, none of them empty")
    if len(choices) > MAX_CHOICES:
        raise SchemaError(f"has {len(choices)} choices, more than the {MAX_CHOICES} that are allowed")
    return f"CHOICE: {' | '.join(map(json.dumps, choices))}\n"


def _lark(grammar: Grammar) -> str:
    _check_size(grammar, MAX_LARK)
    try:
        text = any_to_lark(grammar.text)
    except Exception as error:  # the converter from GBNF raises its own errors and bare exceptions
        raise SchemaError(f"is no grammar that can be read: {str(error).splitlines()[0][:200]}") from error
    unserved = _NOT_SERVED.search(_QUOTED.sub('""', text))
    if unserved:
        raise SchemaError(f"uses {unserved.group().strip()!r}, which is not supported")
    return text + _UNFORCED


def _tools(grammar: Grammar) -> str:
    described = json.loads(grammar.text)
    names = " | ".join(f"call_{index}" for index in range(len(described["tools"])))
    more = f'("\\n{START}" body)*' if described["parallel"] else ""
    rules = [f"body: {names}", *(_call(index, tool) for index, tool in enumerate(described["tools"]))]
    if described["required"]:
        return "\n".join([f'start: "{START}" body {more}', *rules])
    if described["answer"]:
        return "\n".join([f'start: answer | "{START}" body {more}', _answer(Grammar(**described["answer"])), *rules])
    text = [
        f"start: TEXT | head body {more}",
        f"TEXT: /(?s:.*)/ & ~/(?s:.*){START}(?s:.*)/",
        f"head[lazy]: /(?s:.*){START}/",
    ]
    return "\n".join(text + rules)


def _call(index: int, tool: Mapping[str, Any]) -> str:
    """The rules of a call of one tool, after the opening tag."""
    begin = head(tool["name"]).removeprefix(START)
    schema = _arguments(tool) | {"x-guidance": json_schema.options(inline=True)}
    return (
        f"call_{index}: {json.dumps(begin)} arguments_{index} {json.dumps(TAIL)}\n"
        f"arguments_{index}: %json {json.dumps(schema)}"
    )


def _arguments(tool: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json_schema.as_object(tool["parameters"])
    except SchemaError as error:
        raise _refusal(tool["path"], error) from error


def _answer(grammar: Grammar) -> str:
    """The rules of an answer without calls."""
    try:
        if grammar.kind == "choice":
            return "answer: CHOICE\n" + _choice_rule(grammar)
        schema = {"type": "object"} if grammar.kind == "json_object" else json_schema.check(_load(grammar))
    except SchemaError as error:
        raise _refusal(grammar.param, error) from error
    return f"answer: %json {json.dumps(schema | {'x-guidance': json_schema.options(inline=False)})}"


def _refusal(param: str, error: SchemaError) -> RequestError:
    return RequestError(f"{param} {error}.", param=param, code="unsupported_schema")


def _load(grammar: Grammar) -> Any:
    try:
        return json.loads(grammar.text)
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
