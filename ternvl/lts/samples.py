"""The requests of a lock's transcripts: texts, pictures, tools, a schema, sampling, and each adapter."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image, ImageDraw

_COLORS = ((210, 40, 40), (40, 70, 200), (240, 200, 40))
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Returns the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
_FORM = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}, "color": {"enum": ["red", "blue"]}},
    "required": ["count", "color"],
    "additionalProperties": False,
}


def requests(adapters: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Return the requests by name, with one for each of the adapters. They are greedy unless they name a seed."""
    tile, wide = picture((224, 224), "PNG"), picture((480, 240), "JPEG")
    found: dict[str, dict[str, Any]] = {
        "text": {"messages": _asks("Name the european capitals")},
        "system message": {"messages": [{"role": "system", "content": "Answer briefly."}, *_asks("Who are you?")]},
        "sampled text": {"messages": _asks("What can you do?"), "temperature": 1, "top_p": 0.95, "seed": 7},
        "image": {"messages": _asks("Describe the image.", tile)},
        "two images": {"messages": _asks("What is in these images?", tile, wide)},
        "sampled image": {"messages": _asks("Describe the image.", wide), "temperature": 0.8, "seed": 11},
        "tools": {"messages": _asks("What is the weather in Lisbon?"), "tools": [_WEATHER]},
        "schema": {"messages": _asks("How many shapes are there?", wide), "json_schema": _FORM},
        "penalties": {"messages": _asks("Good morning"), "repetition_penalty": 1.2, "presence_penalty": 0.5},
    }
    for name in adapters:
        found[f"adapter {name}"] = {"messages": _asks("Describe the image.", tile), "adapter": name}
    return {name: {"temperature": 0, "max_tokens": 32} | request for name, request in found.items()}


def picture(size: tuple[int, int], format: str) -> str:
    """Return a picture of three shapes as a data URL. A JPEG also shows whether its decoder has stayed the same."""
    width, height = size
    image = Image.new("RGB", size, (225, 232, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.06, height * 0.1, width * 0.42, height * 0.55), _COLORS[0])
    draw.rectangle((width * 0.55, height * 0.5, width * 0.92, height * 0.9), _COLORS[1])
    draw.polygon([(width * 0.7, height * 0.08), (width * 0.9, height * 0.4), (width * 0.5, height * 0.4)], _COLORS[2])
    buffer = io.BytesIO()
    image.save(buffer, format)
    return f"data:image/{format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def _asks(text: str, *pictures: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}]
