"""What every client is asked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

MODEL = "ternvl-nano"
IMAGE_QUESTION = "What is in this image?"
GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
LONG: dict[str, Any] = {"max_tokens": 4000, "temperature": 0}
ROOM = 200
"""Tokens that a call or an answer of a schema may take."""

Call = tuple[str, dict[str, Any]]
"""Name and arguments."""


class Weather(BaseModel):
    """The weather of a city"""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "Rome", "Ljubljana"]
    days: Literal[1, 2, 3]


class Capital(BaseModel):
    """A capital"""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Rome", "Ljubljana"]
    is_large: bool


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": Weather.model_json_schema(),
    },
}


def turn(text: str, image: str | None = None, video: str | None = None) -> list[Any]:
    """A conversation of one question in OpenAI's form; `image` is a URL, and `video`, in vLLM's form, too."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": image}})
    if video is not None:
        parts.append({"type": "video_url", "video_url": {"url": video}})
    return [{"role": "user", "content": parts if len(parts) > 1 else text}]
