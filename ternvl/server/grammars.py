"""What a request says of the form of its answer, as a `Grammar`: `response_format`, vLLM's `structured_outputs` and
`guided_*`, and its tools."""

from __future__ import annotations

from collections.abc import Iterator

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling.tools import tool_grammar
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.schema.forms import JsonObjectFormat, JsonSchemaFormat, NamedToolChoice


def to_grammar(request: ChatRequest) -> Grammar | None:
    """None for free text. Raises RequestError where the fields do not agree."""
    formats = list(_formats(request))
    if len(formats) > 1:
        raise RequestError(
            f"{formats[1].param} is given beside {formats[0].param}, but an answer has one form.",
            param=formats[1].param,
        )
    choice = request.tool_choice or "auto"
    return tool_grammar(
        [tool.model_dump(exclude_none=True) for tool in request.tools or []],
        choice.model_dump() if isinstance(choice, NamedToolChoice) else choice,
        parallel=request.parallel_tool_calls is not False,
        answer=formats[0] if formats else None,
    )


def _formats(request: ChatRequest) -> Iterator[Grammar]:
    wanted = request.response_format
    if isinstance(wanted, JsonSchemaFormat):
        yield Grammar.of("json_schema", wanted.json_schema.json_schema, param="response_format.json_schema.schema")
    elif isinstance(wanted, JsonObjectFormat):
        yield Grammar("json_object", param="response_format")
    if (outputs := request.structured_outputs) is not None:
        if outputs.json_object:
            yield Grammar("json_object", param="structured_outputs.json_object")
        yield from _vllm(outputs.json_schema, outputs.regex, outputs.choice, outputs.grammar, "structured_outputs.")
    yield from _vllm(
        request.guided_json, request.guided_regex, request.guided_choice, request.guided_grammar, "guided_"
    )


def _vllm(
    schema: object, regex: str | None, choice: list[str] | None, grammar: str | None, prefix: str
) -> Iterator[Grammar]:
    if schema is not None:
        yield Grammar.of("json_schema", schema, param=f"{prefix}json")
    if regex is not None:
        yield Grammar.of("regex", regex, param=f"{prefix}regex")
    if choice is not None:
        yield Grammar.of("choice", choice, param=f"{prefix}choice")
    if grammar is not None:
        yield Grammar.of("lark", grammar, param=f"{prefix}grammar")
