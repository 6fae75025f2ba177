"""The tools of OpenAI's Responses, and the functions that they are to the model.

The model calls functions alone. A custom tool, which takes any text, is a function with the one argument `input`; a
function of a namespace has the namespace before its name. Tools that run on OpenAI's servers and that clients offer by
default are left out; the others are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import ConfigDict, Field, Tag, model_validator

from ternvl.server.schema.forms import FunctionName
from ternvl.server.schema.types import MAX_TOOLS, NonEmpty, Schema, by, refuse

LeftOut = Literal[
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "image_generation",
    "tool_search",
]  # fmt: skip
"""Tools that the server cannot run, which clients such as Codex offer without being asked to."""

INPUT = "input"
"""The argument of the function that a custom tool is to the model."""


class FunctionTool(Schema):
    """A function that the model may call."""

    passes_unknown: ClassVar[bool] = True

    type: Literal["function"]
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextInput(Schema):
    """The format of any text."""

    type: Literal["text"]


class GrammarInput(Schema):
    """The format of a text that a grammar defines. The model reads it, but it is not enforced."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(Schema):
    """A tool that the model may call with any text."""

    passes_unknown: ClassVar[bool] = True

    type: Literal["custom"]
    name: NonEmpty
    description: str | None = None
    format: (
        Annotated[
            Annotated[TextInput, Tag("@text")] | Annotated[GrammarInput, Tag("@grammar")], by("type", "text", "grammar")
        ]
        | None
    ) = None


ToolOfNamespace = Annotated[
    Annotated[FunctionTool, Tag("@function")] | Annotated[CustomTool, Tag("@custom")], by("type", "function", "custom")
]


class NamespaceTool(Schema):
    """Several tools whose names are their own within a namespace."""

    type: Literal["namespace"]
    name: NonEmpty
    description: str | None = None
    tools: Annotated[list[ToolOfNamespace], Field(max_length=MAX_TOOLS, fail_fast=True)]


class LeftOutTool(Schema):
    """A tool that runs on OpenAI's servers. It is left out, and the header `x-ternvl-ignored-fields` names it."""

    passes_unknown: ClassVar[bool] = True

    type: LeftOut


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("@function")]
    | Annotated[CustomTool, Tag("@custom")]
    | Annotated[NamespaceTool, Tag("@namespace")]
    | Annotated[LeftOutTool, Tag("@left_out")],
    by("type", "function", "custom", "namespace", left_out=get_args(LeftOut)),
]


class NamedTool(Schema):
    """A tool choice that requires a call of one tool, in the form of Responses or of Chat Completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["name"], "properties": {"name": {"type": "string"}}},
                {"required": ["function"], "properties": {"function": {"type": "object"}}},
            ]
        }
    )

    type: Literal["function", "custom"]
    name: NonEmpty | None = None
    function: FunctionName | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if self.name is None and self.function is None:
            raise refuse("name", "is required", code="missing_required_parameter")
        return self

    @property
    def tool_name(self) -> str:
        """The name of the tool, in either form."""
        return self.name or (self.function.name if self.function else "")


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A tool of the request that the model may call."""

    tool: FunctionTool | CustomTool
    namespace: NamespaceTool | None
    path: str
    """What the request calls the tool, such as `tools[0]`."""
    is_first: bool = True
    """Whether it is the first tool of its namespace, which shows the namespace's description."""

    @property
    def shown_name(self) -> str:
        """The name that the model calls."""
        return shown_name(self.tool.name, self.namespace.name if self.namespace else None)

    @property
    def is_custom(self) -> bool:
        """Whether its calls have a text rather than arguments."""
        return isinstance(self.tool, CustomTool)

    @property
    def definition(self) -> dict[str, Any]:
        """OpenAI's definition of the function that it is to the model."""
        function = self.tool.model_dump(exclude={"type"}, exclude_none=True) | {"name": self.shown_name}
        if self.is_custom:
            properties = {INPUT: {"type": "string"}}
            function["parameters"] = {"type": "object", "properties": properties, "required": [INPUT]}
        defined: dict[str, Any] = {"type": "function", "function": function}
        if self.namespace is not None and self.is_first:
            defined["namespace"] = self.namespace.model_dump(include={"name", "description"}, exclude_none=True)
        return defined

    @property
    def unenforced(self) -> bool:
        """Whether it has a grammar, which its calls need not follow."""
        return isinstance(self.tool, CustomTool) and isinstance(self.tool.format, GrammarInput)


def shown_name(name: str, namespace: str | None) -> str:
    """Return the name of a tool to the model: that of its namespace, `__` and its own."""
    return name if not namespace else f"{namespace.rstrip('_')}__{name}"


def called_tools(tools: Sequence[Any]) -> Iterator[CalledTool]:
    """Yield the tools that the model may call."""
    for index, tool in enumerate(tools):
        if isinstance(tool, NamespaceTool):
            for number, each in enumerate(tool.tools):
                yield CalledTool(each, tool, f"tools[{index}].tools[{number}]", number == 0)
        elif not isinstance(tool, LeftOutTool):
            yield CalledTool(tool, None, f"tools[{index}]")
