"""What a request has in common with earlier ones, by which it goes to the replica that has that in its caches.

An image goes first, because a tile costs as much as a thousand tokens of text; then an adapter, which a replica would
have to read; then the beginning of the conversation, whose keys and values are in the prefix cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ternvl.errors import TernvlError
from ternvl.server.guard.limits import decode_json

PREFIX_CHARACTERS = 256
"""The characters of the first turn that count: four blocks of the KV cache or more."""

_MEDIA = ("image_url", "video_url", "input_image", "source", "image", "video")
"""The fields of parts of messages that hold an image or a video, as a URL or as an object with one."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """What a request is routed by."""

    kind: str
    """image, adapter or prefix; none for requests that fit every replica."""
    key: bytes
    """Equal for requests that should meet; empty if the kind is none."""
    adapter: str | None = None
    """The name in the request that may be an adapter's."""


NONE = Affinity("none", b"")


def affinity_of(body: bytes, base_names: Collection[str]) -> Affinity:
    """Return what the body of a request is routed by. `base_names` are the names of the model itself.

    A body that is no JSON object has no affinity: every replica gives the same error for it.
    """
    try:
        values = decode_json(body)
    except TernvlError:
        return NONE
    if not isinstance(values, dict):
        return NONE
    adapter = _adapter(values, base_names)
    images = _images(values)
    if image := next(images, None):
        return Affinity("image", _digest("image", image), adapter)
    if adapter is not None:
        return Affinity("adapter", _digest("adapter", adapter), adapter)
    beginning = _beginning(values)
    return Affinity("prefix", _digest("prefix", beginning)) if beginning else NONE


def _digest(kind: str, text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=kind.encode()).digest()


def _adapter(values: dict[str, Any], base_names: Collection[str]) -> str | None:
    for name in (values.get("lora"), values.get("model")):
        if isinstance(name, str) and name and name not in base_names:
            return name
    return None


def _turns(values: dict[str, Any]) -> list[Any]:
    """Return the turns of a conversation in the form of any protocol; a prompt is one turn."""
    for name in ("messages", "input", "prompt"):
        turns = values.get(name)
        if turns:
            return turns if isinstance(turns, list) else [turns]
    return []


def _images(values: dict[str, Any]) -> Iterator[str]:
    for turn in _turns(values):
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else [turn]:
            if isinstance(part, dict):
                yield from filter(None, (_reference(part.get(name)) for name in _MEDIA))


def _reference(value: Any) -> str:
    """Return the URL or the encoded bytes of a medium; the same file is the same text in every protocol."""
    if isinstance(value, dict):
        value = value.get("url") or value.get("data")
    if not isinstance(value, str):
        return ""
    return value.partition("base64,")[2] if value.startswith("data:") and "base64," in value else value


def _beginning(values: dict[str, Any]) -> str:
    """Return the system message and the beginning of the first turn, which all turns of a conversation share."""
    heads = [_text(values.get(name)) for name in ("system", "instructions")]
    for turn in _turns(values):
        role = turn.get("role") if isinstance(turn, dict) else None
        text = _text(turn.get("content") if isinstance(turn, dict) else turn)
        if role in ("system", "developer"):
            heads.append(text)
        else:
            heads.append(text[:PREFIX_CHARACTERS])
            break
    return "\0".join(filter(None, heads))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(each.get("text") if isinstance(each, dict) else each) for each in value)
    return str(value) if isinstance(value, int) else ""
