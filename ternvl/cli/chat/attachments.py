"""Images and videos that are attached to a message, from files or from the standard input."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ternvl.errors import RequestError
from ternvl.limits import ImageLimits
from ternvl.prompt.images import decode

LIMITS = ImageLimits(max_images=1024, max_image_bytes=2**30)
"""The limits of a user's own images: the model's context is the only bound on their number."""
STDIN = Path("-")


def image_part(path: Path) -> dict[str, Any]:
    """Return an image as a part of a message; `-` is the standard input. Raises RequestError if it is no image."""
    data = sys.stdin.buffer.read() if path == STDIN else _bytes(path)
    decode(data, LIMITS, "The standard input" if path == STDIN else str(path))
    return {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(data).decode()}}


def video_part(path: Path) -> dict[str, Any]:
    """Return a video as a part of a message. Raises RequestError if the file cannot be read."""
    try:
        found = path.expanduser().absolute()  # for the file of the conversation, which is read in any folder
        found.open("rb").close()
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"The video {path} cannot be read: {getattr(error, 'strerror', error)}.") from error
    return {"type": "video", "video": found}


def _bytes(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"The image {path} cannot be read: {getattr(error, 'strerror', error)}.") from error


def pasted_path(text: str) -> Path:
    """Return the path that a text means as a terminal or a file manager pastes it.

    It may have white space or quotes around it, begin with `file://`, and have a backslash before each space.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    path = Path(text)
    return path if "\\" not in text or path.exists() else Path(re.sub(r"\\(.)", r"\1", text))
