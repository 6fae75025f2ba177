"""Training data: parses lines of JSON, in OpenAI's format or in InternVL's, into conversations.

OpenAI's: `{"messages": [...], "tools": [...]}`, where an image's URL is a path below the folder of images or a `data:`
URI, and an assistant message with `"weight": 0` is not learned. InternVL's: `{"image": "a.jpg" or [...],
"conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]}`. Other keys of a line
are ignored.
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
from ternvl.sampling.tools import Tools

_NO_VIDEOS = "The line has a video, but only images can be trained on; give the frames of the video as images."


@dataclass(frozen=True, slots=True)
class TrainingConversation:
    """The conversation of one line of data."""

    messages: tuple[Message, ...]
    is_learned: tuple[bool, ...]
    """For each message: whether it is an answer that the model learns."""
    tools: tuple[Mapping[str, Any], ...] = ()


class DataFile:
    """A file of lines. Each line is read when it is needed, so the data may be larger than memory."""

    def __init__(self, path: Path, images: Path | None) -> None:
        """`images` is the folder of the images. Raises ConfigError if it does not exist, or if the file cannot be read
        or holds no line of data."""
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

    def __getitem__(self, index: int) -> TrainingConversation:
        """Return the conversation of line `index`. Raises RequestError, without the line's number, if it is invalid."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return parse(file.readline(), self.images)


def parse(line: bytes, images: Path | None) -> TrainingConversation:
    """Parse one line of either format. Raises RequestError if it is invalid."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The line is not valid JSON: {error}.") from error
    if not isinstance(row, dict) or not row.keys() & {"messages", "conversations"}:
        raise RequestError('The line must be an object with "messages" (OpenAI) or "conversations" (InternVL).')
    messages = _openai(row["messages"], images) if "messages" in row else _internvl(row, images)
    weights = [message.get("weight", 1) for message in messages]
    _check_weights(weights)
    parsed = tuple(parse_messages(messages))
    if any(message.videos for message in parsed):
        raise RequestError(_NO_VIDEOS)
    _check_calls(parsed)
    is_learned = tuple(m.role == "assistant" and bool(w) for m, w in zip(parsed, weights, strict=True))
    if not any(is_learned):
        raise RequestError("There is no assistant message to learn from.")
    return TrainingConversation(parsed, is_learned, _tools(row.get("tools")))


def _check_weights(weights: Sequence[Any]) -> None:
    if any(weight not in (0, 1) for weight in weights):
        raise RequestError("A message's weight must be 0 or 1.")


def _check_calls(messages: Sequence[Message]) -> None:
    """Raise RequestError for arguments that are not JSON: a conversation may hold such a call, but none is learnt."""
    for call in (call for message in messages for call in message.tool_calls):
        try:
            json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            raise RequestError(f"A call has arguments that are not JSON: {call.arguments[:60]!r}.") from None


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RequestError("tools must be a list of objects.")
    return tuple(Tools(tools).shown)


# --- OpenAI's format --------------------------------------------------------------------------------------------------


def _openai(messages: Any, images: Path | None) -> list[dict[str, Any]]:
    """Replace paths of images by URLs. `parse_messages` checks the rest of the messages."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError("messages must be a list of message objects.")
    return [
        message | {"content": [_with_image_url(part, images) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _with_image_url(part: Any, images: Path | None) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("image_url"), dict):
        return part
    image_url: dict[str, Any] = part["image_url"]
    url = image_url.get("url")
    return part | {"image_url": image_url | {"url": _to_url(url, images)}} if isinstance(url, str) else part


def _to_url(path: str, images: Path | None) -> str:
    """Return the URL of an image. Raises RequestError if it is neither a `data:` URI nor a file below `images`."""
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
        raise RequestError(f"The image {path[:80]!r} is not a file below {images}.")
    return found.as_uri()


# --- InternVL's annotation format -------------------------------------------------------------------------------------

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_PLACEHOLDER = re.compile(r"(?:Image-\d+: ?)?<image>\n?")


def _internvl(row: Mapping[str, Any], images: Path | None) -> list[dict[str, Any]]:
    turns, image = row["conversations"], row.get("image") or []
    if "video" in row:
        raise RequestError(_NO_VIDEOS)
    paths = [image] if isinstance(image, str) else image
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise RequestError("image must be a path or a list of paths.")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RequestError("conversations must be a list of turns.")
    urls = [_to_url(path, images) for path in paths]
    values = [str(turn.get("value")) for turn in turns if turn.get("from") == "human"]
    num_placeholders = sum(value.count("<image>") for value in values)
    if num_placeholders not in (len(paths), 0) or (num_placeholders == 0 and len(paths) > 1):
        raise RequestError(
            f"The line has {len(paths)} images, but <image> occurs {num_placeholders} times in its text."
        )
    if num_placeholders == 0 and paths and values:  # as officially: one image comes first
        first = next(turn for turn in turns if turn.get("from") == "human")
        turns = [turn | {"value": "<image>\n" + str(turn.get("value"))} if turn is first else turn for turn in turns]
    return [_to_message(turn, urls) for turn in turns]


def _to_message(turn: Mapping[str, Any], urls: list[str]) -> dict[str, Any]:
    """Return a turn as an OpenAI message, with its images taken from the front of `urls`."""
    role, text = _ROLES.get(str(turn.get("from"))), turn.get("value")
    if role is None or not isinstance(text, str):
        raise RequestError('A turn must have "from" human, gpt or system, and a "value" that is a string.')
    count = text.count("<image>") if role == "user" else 0
    if not count:
        return {"role": role, "content": text}
    text = _without_placeholders(text)
    taken = [urls.pop(0) for _ in range(count)]
    parts: Sequence[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in taken]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def _without_placeholders(text: str) -> str:
    """Remove the run of `<image>` at the start or at the end, since the template puts images before the text.

    Raises RequestError for an `<image>` in the middle.
    """
    while match := _PLACEHOLDER.match(text):
        text = text[match.end() :]
    text = re.sub(r"(?:\s*<image>)+\s*$", "", text)
    if "<image>" in text:
        raise RequestError(
            "<image> stands in the middle of a text, but must stand before or after the text of its turn."
        )
    return text
