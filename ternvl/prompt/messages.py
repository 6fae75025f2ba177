"""A conversation as the template takes it: roles, text, images and tool calls, no JSON any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a user turn: a URL (`data:`, `http(s):`, `file:`) or an image that is already open."""

    source: str | Image.Image
    detail: Literal["auto", "low", "high"] = "auto"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` is a string of JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `images` are of user turns only, `tool_calls` of assistant turns only."""

    role: Role
    text: str = ""
    images: tuple[ImageInput, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
