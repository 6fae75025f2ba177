"""What a client may send to `POST /v1/messages` (Anthropic's Messages), and the chat request it stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag

from ternvl.server.foreign import Foreign
from ternvl.server.schema.forms import OutputConfig
from ternvl.server.schema.sampling import DrawingFields
from ternvl.server.schema.types import STRING_OR_ARRAY, Integer, NonEmpty, Schema, by, uri

MESSAGE_VALUES: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": (),
    "mcp_servers": ([],),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "thinking": ({"type": "disabled"},),
}


class CacheControl(Schema):
    """A wish to cache what comes before; the server does so anyway."""

    type: Literal["ephemeral"]


class TextBlock(Schema):
    """A piece of text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = Field(default=None, max_length=0)


class Base64Source(Schema):
    """The bytes of an image."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: NonEmpty


class UrlSource(Schema):
    """The address of an image."""

    type: Literal["url"]
    url: Annotated[str, AfterValidator(uri)]


Source = Annotated[
    Annotated[Base64Source, Tag("@base64")] | Annotated[UrlSource, Tag("@url")], by("type", "base64", "url")
]


class ImageBlock(Schema):
    """An image in a user message."""

    type: Literal["image"]
    source: Source
    cache_control: CacheControl | None = None


class ToolUseBlock(Schema):
    """A call that the model made in an earlier turn."""

    type: Literal["tool_use"]
    id: str
    name: NonEmpty
    input: dict[str, Any]
    cache_control: CacheControl | None = None


Texts = Annotated[
    Annotated[str, Tag("@string")] | Annotated[list[TextBlock], Field(fail_fast=True), Tag("@array")], STRING_OR_ARRAY
]


class ToolResultBlock(Schema):
    """What a tool answered: text. That of an error begins with "Error: "."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("@text")]
    | Annotated[ImageBlock, Tag("@image")]
    | Annotated[ToolResultBlock, Tag("@tool_result")],
    by("type", "text", "image", "tool_result"),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("@text")] | Annotated[ToolUseBlock, Tag("@tool_use")], by("type", "text", "tool_use")
]


class UserTurn(Schema):
    """A turn of the user: text, images and what tools answered."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[UserBlock], Field(fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]

    def to_chat(self) -> Iterator[dict[str, Any]]:
        """Messages of the chat request: what tools answered comes before what the user says."""
        if isinstance(self.content, str):
            yield {"role": "user", "content": self.content}
            return
        parts = []
        for block in self.content:
            if isinstance(block, ToolResultBlock):
                yield _tool_message(block)
            else:
                parts.append(_part(block))
        if parts or not self.content:
            yield {"role": "user", "content": parts}


class AssistantTurn(Schema):
    """An earlier answer; the last turn, if it is text alone, is gone on with."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("@string")] | Annotated[list[AssistantBlock], Field(fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]

    def to_chat(self) -> Iterator[dict[str, Any]]:
        """One message of the chat request."""
        if isinstance(self.content, str):
            yield {"role": "assistant", "content": self.content}
            return
        texts = [_part(block) for block in self.content if isinstance(block, TextBlock)]
        calls = [_call(block) for block in self.content if isinstance(block, ToolUseBlock)]
        yield {"role": "assistant", "content": texts} | ({"tool_calls": calls} if calls else {})


class CustomTool(Schema):
    """A tool that the model may call."""

    type: Literal["custom"] | None = None
    name: NonEmpty
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Schema):
    """Whether, and which, tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: NonEmpty | None = None
    disable_parallel_tool_use: bool | None = None


class UserMetadata(Schema):
    """A label; changes nothing."""

    user_id: str | None = None


class Conversation(Schema):
    """What makes the prompt: the body of `POST /v1/messages/count_tokens`."""

    model: str | None = None
    messages: Annotated[
        list[
            Annotated[
                Annotated[UserTurn, Tag("@user")] | Annotated[AssistantTurn, Tag("@assistant")],
                by("role", "user", "assistant"),
            ]
        ],
        Field(min_length=1, fail_fast=True),
    ]
    system: Texts | None = None
    tools: Annotated[list[CustomTool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None

    def to_chat(self) -> Foreign:
        """The chat request that this stands for."""
        turns = [(f"messages[{index}]", turn) for index, each in enumerate(self.messages) for turn in each.to_chat()]
        if self.system is not None:
            turns.insert(0, ("system", {"role": "system", "content": _plain(self.system)}))
        body: dict[str, Any] = {"messages": [turn for _, turn in turns]} | self._chat_fields()
        if turns[-1][1]["role"] == "assistant" and "tool_calls" not in turns[-1][1]:
            body["continue_final_message"] = True
        return Foreign(body, [path for path, _ in turns], _NAMES)

    def _chat_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {} if self.model is None else {"model": self.model}
        if self.tools:
            fields["tools"] = [_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            fields["tool_choice"] = _tool_choice(self.tool_choice)
            if self.tool_choice.disable_parallel_tool_use:
                fields["parallel_tool_calls"] = False
        if self.output_config is not None and self.output_config.format is not None:
            schema = {"name": "answer", "schema": self.output_config.format.json_schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return fields


class MessagesRequest(Conversation, DrawingFields):
    """The body of `POST /v1/messages`. Sampling fields that Anthropic lacks mean what they mean in Chat Completions."""

    max_tokens: Annotated[Integer, Field(ge=1)]
    stop_sequences: Annotated[list[NonEmpty], Field(max_length=16)] | None = None
    metadata: UserMetadata | None = None  # type: ignore[assignment]

    def _chat_fields(self) -> dict[str, Any]:
        names = set(DrawingFields.model_fields) - {"metadata", "user"}
        fields = self.model_dump(include=names | {"max_tokens"}, exclude_none=True)
        stops = [*([self.stop] if isinstance(self.stop, str) else self.stop or []), *(self.stop_sequences or [])]
        return fields | ({"stop": stops} if stops else {}) | super()._chat_fields()


_NAMES = (
    (r"stop\b", "stop_sequences"),
    (r"tools\[(\d+)\]\.function\.parameters", r"tools[\1].input_schema"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    (r"response_format\.json_schema", "output_config.format"),
    (r"n$", "max_tokens"),
)


def _plain(texts: str | list[TextBlock]) -> str | list[dict[str, Any]]:
    return texts if isinstance(texts, str) else [_part(block) for block in texts]


def _part(block: TextBlock | ImageBlock) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if isinstance(source, UrlSource) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _tool_message(block: ToolResultBlock) -> dict[str, Any]:
    content = "" if block.content is None else _plain(block.content)
    if block.is_error:
        text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
        content = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _tool(tool: CustomTool) -> dict[str, Any]:
    named = tool.model_dump(include={"name", "description", "strict"}, exclude_none=True)
    return {"type": "function", "function": named | {"parameters": tool.input_schema}}


def _tool_choice(choice: ToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
