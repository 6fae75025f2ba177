"""The functions that an answer may call, and the grammar that holds the answer to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ternvl.errors import RequestError
from ternvl.params import Grammar

ToolChoice = str | Mapping[str, Any]
"""OpenAI's `tool_choice`: "auto", "required", "none" or `{"type": "function", "function": {"name": ...}}`."""

_ANSWER_KINDS = ("json_schema", "json_object", "choice")
_WORDS = ("auto", "required", "none")
_FIRST_KEYS = ("name", "description", "parameters")


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request: OpenAI's definitions, and which of them the answer must or may call."""

    definitions: Sequence[Mapping[str, Any]] = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    """Whether an answer may hold more than one call."""
    closed: bool = True
    """Whether arguments have only the properties that a schema lists, as in `Grammar.closed`."""
    schema_path: str = "tools[{index}].function.parameters"
    """What the request calls the schema of tool `index`. Errors name it."""
    schema_paths: Sequence[str] = ()
    """What the request calls the schema of each tool, if `schema_path` cannot say it."""
    name_path: str = "tool_choice.function.name"
    """What the request calls the name in `choice`."""

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The definitions that the prompt shows: none if `choice` is "none". `strict` is not for the model to read.

        Keys have one order, so that the same tools give the same prompt whatever door the request came in by.
        """
        return [] if self.choice == "none" else [_shown(tool) for tool in self.definitions]

    @property
    def names(self) -> list[str]:
        """The name of each function that the answer may call. Raises RequestError for an invalid definition."""
        return [] if self.choice == "none" else _names(self.definitions)

    def grammar(self, answer: Grammar | None = None) -> Grammar | None:
        """Return the grammar of an answer that may call these tools; `answer` if it may call none.

        With "auto" the answer is text that may end in calls or, given `answer` (JSON or a choice), either what that
        asks for or calls. With "required" it is calls alone; with a named function, one call of it. Unless `parallel`,
        it has at most one call. If several tools have one name, a call may be of any. Raises RequestError for an
        invalid definition or choice, for a choice that no tool satisfies, and for an `answer` of another kind.
        """
        names = _names(self.definitions)
        only = _named(self.choice)
        if not names and (only is not None or self.choice == "required"):
            raise RequestError("tool_choice asks for a call, but there are no tools.", param="tool_choice")
        if only is not None and only not in names:
            message = f"{self.name_path} is {only[:60]!r}, but no tool is called that."
            raise RequestError(message, param=self.name_path)
        if not names or self.choice == "none":
            return answer
        if answer is not None and answer.kind not in _ANSWER_KINDS:
            raise RequestError(f"{answer.param} cannot be combined with tools.", param=answer.param)
        return Grammar.of("tools", self._described(names, only, answer), param="tools")

    def _described(self, names: Sequence[str], only: str | None, answer: Grammar | None) -> dict[str, Any]:
        """What `sampling/sources.py` writes the grammar from."""
        return {
            "tools": [
                {
                    "path": self.schema_paths[index] if self.schema_paths else self.schema_path.format(index=index),
                    "name": name,
                    "parameters": tool["function"].get("parameters"),
                    "strict": tool["function"].get("strict") is True,
                }
                for index, (name, tool) in enumerate(zip(names, self.definitions, strict=True))
                if only in (None, name)
            ],
            "required": self.choice != "auto",
            "parallel": self.parallel and only is None,
            "closed": self.closed,
            "answer": answer and asdict(answer),
        }


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    _names([tool])
    function = {name: value for name, value in tool["function"].items() if value is not None and name != "strict"}
    first = {name: function.pop(name) for name in _FIRST_KEYS if name in function}
    rest = {name: value for name, value in tool.items() if value is not None and name not in ("type", "function")}
    return {"type": "function", "function": first | function, **rest}


def _names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    try:
        names = [tool["function"]["name"] for tool in tools]
        if all(isinstance(name, str) and name for name in names):
            return names
    except (KeyError, TypeError, AttributeError):
        pass
    raise RequestError("tools must be OpenAI's tool definitions, each with a function and a name.", param="tools")


def _named(choice: ToolChoice) -> str | None:
    """The one function that a choice names. Raises RequestError for an invalid choice."""
    if isinstance(choice, str) and choice in _WORDS:
        return None
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if isinstance(name, str):
        return name
    rule = f"must be one of {', '.join(_WORDS)} or name a function"
    raise RequestError(f"tool_choice is {choice!r:.60}, but {rule}.", param="tool_choice")
