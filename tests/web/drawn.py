"""Pictures as files."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw


def picture(width: int = 112, height: int = 112, *, kind: str = "PNG", **saving: Any) -> bytes:
    """A red circle on white, as large as the picture allows."""
    image = Image.new("RGB", (width, height), "white")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    ImageDraw.Draw(image).ellipse((left + side // 8, top + side // 8, left + side * 7 // 8, top + side * 7 // 8), "red")
    data = io.BytesIO()
    image.save(data, kind, **saving)
    return data.getvalue()


def scene() -> bytes:
    """A red circle at the top left, a blue square at the bottom right."""
    image = Image.new("RGB", (448, 448), "#f2efe6")
    draw = ImageDraw.Draw(image)
    draw.ellipse((50, 72, 206, 228), "#d81e1e")
    draw.rectangle((250, 258, 392, 400), "#2143c8")
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def as_file(content: bytes, name: str = "picture.png", media_type: str = "image/png") -> dict[str, Any]:
    """A file as Playwright's file choosers take it."""
    return {"name": name, "mimeType": media_type, "buffer": content}
