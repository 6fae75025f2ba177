"""What an answer may be where there are tools: which calls, and what else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ternvl.errors import RequestError
from ternvl.params import Grammar

ToolChoice = str | Mapping[str, Any]
"""OpenAI's `tool_choice`: "auto", "required", "none" or `{"type": "function", "function": {"name": ...}}`."""

_ANSWERS = ("json_schema", "json_object", "choice")
_WORDS = ("auto", "required", "none")


def tool_grammar(
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice = "auto",
    *,
    parallel: bool = True,
    answer: Grammar | None = None,
) -> Grammar | None:
    """The grammar of an answer that may call `tools`, OpenAI's definitions; `answer` where it may call none.

    With "auto" it is text, which may end in calls; or, with `answer` (JSON or a choice), what that asks for, or calls.
    With "required" it is calls alone, with a named function one call of that. There is one call at most where not
    `parallel`. Of tools with the same name, a call is of any. Raises RequestError for what is no tool or no choice, for
    a choice that there is no tool for, and for an `answer` of another kind.
    """
    names = tool_names(tools)
    only = _named(choice)
    if not names and (only is not None or choice == "required"):
        raise RequestError("tool_choice asks for a call, but there are no tools.", param="tool_choice")
    if only is not None and only not in names:
        raise RequestError(
            f"tool_choice.function.name is {only[:60]!r}, but no tool is called that.",
            param="tool_choice.function.name",
        )
    if not names or choice == "none":
        return answer
    if answer is not None and answer.kind not in _ANSWERS:
        raise RequestError(f"{answer.param} cannot be combined with tools.", param=answer.param)
    wish = {
        "tools": [
            {"index": index, "name": name, "parameters": tool["function"].get("parameters")}
            for index, (name, tool) in enumerate(zip(names, tools, strict=True))
            if only in (None, name)
        ],
        "required": choice != "auto",
        "parallel": parallel and only is None,
        "answer": answer and {"kind": answer.kind, "text": answer.text, "param": answer.param},
    }
    return Grammar.of("tools", wish, param="tools")


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each tool's function. Raises RequestError for what is no OpenAI tool definition."""
    try:
        names = [tool["function"]["name"] for tool in tools]
        if all(isinstance(name, str) and name for name in names):
            return names
    except (KeyError, TypeError, AttributeError):
        pass
    raise RequestError("tools must be OpenAI's tool definitions, each with a function and a name.", param="tools")


def _named(choice: ToolChoice) -> str | None:
    """The one function that a choice names. Raises RequestError for what is no choice."""
    if isinstance(choice, str) and choice in _WORDS:
        return None
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if isinstance(name, str):
        return name
    rule = f"must be one of {', '.join(_WORDS)} or name a function"
    raise RequestError(f"tool_choice is {choice!r:.60}, but {rule}.", param="tool_choice")
