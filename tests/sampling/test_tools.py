"""The tools of a request: what the prompt shows, what may be called, and how errors name what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling.tools import ToolChoice, Tools

PARAMETERS = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}


def tool(name: str = "look", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def named(name: str) -> ToolChoice:
    return {"type": "function", "function": {"name": name}}


def test_shown_tools_have_one_order_of_keys() -> None:
    ordered = tool("look", description="Looks.", parameters=PARAMETERS)
    mixed = {"function": {"parameters": PARAMETERS, "description": "Looks.", "name": "look"}, "type": "function"}
    other = {"cache": 1, "function": {"x": 2, **mixed["function"]}, "type": "function"}  # type: ignore[dict-item]
    assert json.dumps(Tools([mixed]).shown) == json.dumps([ordered]) == json.dumps(Tools([ordered]).shown)
    assert json.dumps(Tools([other]).shown) == json.dumps(
        [tool("look", description="Looks.", parameters=PARAMETERS, x=2) | {"cache": 1}]
    )


def test_shown_tools_have_neither_strict_nor_nulls_and_keep_the_schema_as_it_is() -> None:
    given = tool("look", strict=True, description=None, parameters=PARAMETERS)
    (shown,) = Tools([given]).shown
    assert shown == tool("look", parameters=PARAMETERS)
    assert list(shown["function"]["parameters"]["properties"]) == ["b", "a"]
    assert given["function"]["strict"] is True


@pytest.mark.parametrize("choice", ["auto", "required", named("find")])
def test_every_tool_is_shown_and_named_unless_none_is_chosen(choice: ToolChoice) -> None:
    offered = Tools([tool("look"), tool("find")], choice)
    assert offered.names == [each["function"]["name"] for each in offered.shown] == ["look", "find"]


def test_with_the_choice_none_nothing_is_shown_or_named_and_the_answer_is_free() -> None:
    answer = Grammar.of("regex", "a")
    offered = Tools([tool("look")], "none")
    assert (offered.shown, offered.names, offered.grammar(), offered.grammar(answer)) == ([], [], None, answer)
    assert (Tools().shown, Tools().names, Tools().grammar(answer)) == ([], [], answer)


@pytest.mark.parametrize("definition", [{}, {"function": {}}, tool(""), tool(None), 3])  # type: ignore[arg-type]
def test_an_invalid_definition_is_refused_whatever_is_asked_of_it(definition: Any) -> None:
    offered = Tools([tool("look"), definition])
    for look in (lambda: offered.shown, lambda: offered.names, offered.grammar):
        with pytest.raises(RequestError) as refusal:
            look()
        assert refusal.value.param == "tools"


def described(tools: Tools) -> dict[str, Any]:
    grammar = tools.grammar()
    assert grammar is not None
    assert (grammar.kind, grammar.param) == ("tools", "tools")
    value: dict[str, Any] = json.loads(grammar.text)
    return value


def test_a_named_function_alone_may_be_called_and_keeps_its_index() -> None:
    found = described(Tools([tool("look"), tool("find", parameters=PARAMETERS)], named("find")))
    assert found["tools"] == [
        {"path": "tools[1].function.parameters", "name": "find", "parameters": PARAMETERS, "strict": False}
    ]
    assert (found["required"], found["parallel"]) == (True, False)


def test_errors_name_what_the_request_calls_a_schema_and_a_choice() -> None:
    paths = {"schema_path": "tools[{index}].input_schema", "name_path": "tool_choice.name"}
    found = described(Tools([tool("look"), tool("find")], parallel=False, **paths))
    assert [each["path"] for each in found["tools"]] == ["tools[0].input_schema", "tools[1].input_schema"]
    assert (found["required"], found["parallel"]) == (False, False)
    with pytest.raises(RequestError) as refusal:
        Tools([tool("look")], named("find"), **paths).grammar()
    assert refusal.value.param == "tool_choice.name"
    assert str(refusal.value).startswith("tool_choice.name ")


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        (Tools((), "required"), "tool_choice"),
        (Tools((), named("look")), "tool_choice"),
        (Tools([tool()], "any"), "tool_choice"),
        (Tools([tool()], {"function": "look"}), "tool_choice"),
        (Tools([tool()], named("find")), "tool_choice.function.name"),
    ],
)
def test_a_choice_that_no_tool_satisfies(tools: Tools, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        tools.grammar()
    assert refusal.value.param == param


def test_only_json_and_choices_go_together_with_tools() -> None:
    for kind, value in (("json_schema", {}), ("json_object", ""), ("choice", ["a"])):
        answer = Grammar.of(kind, value, param="response_format")  # type: ignore[arg-type]
        grammar = Tools([tool()]).grammar(answer)
        assert grammar is not None
        assert json.loads(grammar.text)["answer"] == asdict(answer)
    with pytest.raises(RequestError) as refusal:
        Tools([tool()]).grammar(Grammar.of("regex", "a", param="guided_regex"))
    assert refusal.value.param == "guided_regex"
