"""Training data: lines of JSON to conversations, in OpenAI's form or in InternVL's.

OpenAI's: `{"messages": [...], "tools": [...]}`, where an image's URL is a path below the folder of images or a `data:`
URI, and an assistant message of `"weight": 0` is not learned. InternVL's: `{"image": "a.jpg" or [...],
"conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]}`. Other keys of a line
are left alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternvl.errors import ConfigError, RequestError
from ternvl.prompt.messages import Message, parse_messages


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of data."""

    messages: tuple[Message, ...]
    is_learned: tuple[bool, ...]
    """Beside `messages`: whether it is an answer that the model is to learn."""
    tools: tuple[Mapping[str, Any], ...] = ()


class DataFile:
    """A file of lines, each read when it is asked for: data may be larger than memory."""

    def __init__(self, path: Path, images: Path | None) -> None:
        """`images` is the folder that images lie in. Raises ConfigError for files that cannot be read, or hold
        nothing."""
        if images is not None and not images.is_dir():
            raise ConfigError(f"The folder of images {images} does not exist.")
        self.path, self.images = path, images
        self.line_numbers: list[int] = []
        self._offsets: list[int] = []
        try:
            self.digest = self._scan()
            """SHA-256 of the file."""
        except OSError as error:
            raise ConfigError(f"The data file {path} cannot be read: {error.strerror}.") from error
        if not self._offsets:
            raise ConfigError(f"The data file {path} holds no line of data.")

    def _scan(self) -> str:
        digest, offset = hashlib.sha256(), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    self.line_numbers.append(number)
                    self._offsets.append(offset)
                offset += len(line)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Conversation:
        """Raises RequestError for a line that is no conversation; it does not name the line."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return parse(file.readline(), self.images)


def parse(line: bytes, images: Path | None) -> Conversation:
    """One line of either form. Raises RequestError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"This is no JSON: {error}.") from error
    if not isinstance(row, dict) or not row.keys() & {"messages", "conversations"}:
        raise RequestError('The line must be an object with "messages" (OpenAI) or "conversations" (InternVL).')
    messages = _openai(row["messages"], images) if "messages" in row else _internvl(row, images)
    weights = [message.get("weight", 1) for message in messages]
    if any(weight not in (0, 1) for weight in weights):
        raise RequestError("A message's weight must be 0 or 1.")
    parsed = tuple(parse_messages(messages))
    is_learned = tuple(m.role == "assistant" and bool(w) for m, w in zip(parsed, weights, strict=True))
    if not any(is_learned):
        raise RequestError("There is no assistant message to learn from.")
    return Conversation(parsed, is_learned, _tools(row.get("tools")))


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RequestError("tools must be a list of objects.")
    return tuple(tools)


# --- OpenAI's form ----------------------------------------------------------------------------------------------------


def _openai(messages: Any, images: Path | None) -> list[dict[str, Any]]:
    """The messages with paths of images made URLs. What else is wrong with them `parse_messages` says."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError("messages must be a list of message objects.")
    return [
        message | {"content": [_part(part, images) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _part(part: Any, images: Path | None) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("image_url"), dict):
        return part
    image_url: dict[str, Any] = part["image_url"]
    url = image_url.get("url")
    return part | {"image_url": image_url | {"url": _url(url, images)}} if isinstance(url, str) else part


def _url(path: str, images: Path | None) -> str:
    """Raises RequestError for what is neither a `data:` URI nor a file below `images`."""
    if path[:5].lower() == "data:":
        return path
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path):
        raise RequestError(f"The image {path[:80]!r} is neither a path below the folder of images nor a data: URI.")
    if images is None:
        raise RequestError(f"The image {path[:80]!r} is a path, but no folder of images was given (--images).")
    try:
        found = (images / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise RequestError(f"The image {path[:80]!r} does not exist below {images}.") from None
    if not found.is_relative_to(images.resolve()) or not found.is_file():
        raise RequestError(f"The image {path[:80]!r} is no file below {images}.")
    return found.as_uri()


# --- InternVL's annotation form ---------------------------------------------------------------------------------------

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_PLACE = re.compile(r"(?:Image-\d+: ?)?<image>\n?")


def _internvl(row: Mapping[str, Any], images: Path | None) -> list[dict[str, Any]]:
    turns, given = row["conversations"], row.get("image") or []
    if "video" in row:
        raise RequestError("The line has a video, which is not trained on; give its frames as images.")
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise RequestError("image must be a path or a list of paths.")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RequestError("conversations must be a list of turns.")
    rest = [_url(path, images) for path in paths]
    values = [str(turn.get("value")) for turn in turns if turn.get("from") == "human"]
    num_places = sum(value.count("<image>") for value in values)
    if num_places not in (len(paths), 0) or (num_places == 0 and len(paths) > 1):
        raise RequestError(f"The line has {len(paths)} images, but <image> stands {num_places} times in its text.")
    if num_places == 0 and paths and values:  # a single image stands before the first question, as officially
        first = next(turn for turn in turns if turn.get("from") == "human")
        turns = [turn | {"value": "<image>\n" + str(turn.get("value"))} if turn is first else turn for turn in turns]
    return [_turn(turn, rest) for turn in turns]


def _turn(turn: Mapping[str, Any], urls: list[str]) -> dict[str, Any]:
    """An OpenAI message; its images are taken from the front of `urls`."""
    role, text = _ROLES.get(str(turn.get("from"))), turn.get("value")
    if role is None or not isinstance(text, str):
        raise RequestError('A turn must have "from" human, gpt or system, and a "value" that is a string.')
    count = text.count("<image>") if role == "user" else 0
    if not count:
        return {"role": role, "content": text}
    text = _without_places(text)
    taken = [urls.pop(0) for _ in range(count)]
    parts: Sequence[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in taken]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def _without_places(text: str) -> str:
    """The text behind, or before, its run of `<image>`: the template writes a turn's images before its text."""
    while match := _PLACE.match(text):
        text = text[match.end() :]
    text = re.sub(r"(?:\s*<image>)+\s*$", "", text)
    if "<image>" in text:
        raise RequestError("<image> stands in the middle of a text; images stand before the text of their turn.")
    return text
