"""The parts of a turn's content: texts, images and videos, and how they are read from OpenAI's and others' parts.

Videos come as vLLM and LMDeploy (`video_url`), Qwen (`video`) and llama.cpp (`input_video`) write them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from PIL import Image

from ternvl.errors import RequestError
from ternvl.prompt import urls

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a turn: a URL (`data:`, `http(s):`, `file:`) or an image that is already open.

    `min_dynamic_patch` and `max_dynamic_patch` are the fewest and the most tiles that it is cut into, thumbnail apart;
    None leaves them to `detail` and the settings of the request.
    """

    source: str | Image.Image
    detail: Detail = "auto"
    min_dynamic_patch: int | None = None
    max_dynamic_patch: int | None = None
    path: str = field(default="", compare=False)
    """What the request calls the source, such as "messages[0].content[1].image_url.url". Errors name it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many frames a video is sampled to. A field that is None is left to the request or the server."""

    num_frames: int | None = None
    """The number of frames; with `fps`, the most."""
    fps: float | None = None
    """Frames for each second of the video, at least one frame."""

    def or_else(self, default: Sampling) -> Sampling:
        """Return this sampling, or the default if nothing is given."""
        return default if self == Sampling() else self


@dataclass(frozen=True, slots=True)
class VideoInput:
    """One video of a turn: a URL, a local file that the caller may read, or the URLs of its frames.

    `min_dynamic_patch` and `max_dynamic_patch` are the fewest and the most tiles of a frame; None means one tile.
    """

    source: str | Path | tuple[str, ...]
    sampling: Sampling = Sampling()
    min_dynamic_patch: int | None = None
    max_dynamic_patch: int | None = None
    path: str = field(default="", compare=False)
    """What the request calls the source. Errors name it."""


Media = ImageInput | VideoInput
Part = str | Media

_TEXTS = ("text", "refusal")
_KINDS = ("text", "image_url", "image", "video_url", "video", "input_video")


def parse_part(part: Any, role: Role, path: str) -> Part:
    """Return a part of the content of a turn. `path` is what the request calls it.

    Raises RequestError whose `param` is the path of the fault.
    """
    expect(part, Mapping, "an object", path)
    kind = part.get("type")
    if role not in ("user", "tool") and kind in _KINDS and kind not in _TEXTS:
        noun = "an image" if kind.startswith("image") else "a video"
        rule = f"images and videos belong in user messages and results of tools, not in {role} messages"
        raise RequestError(f"{path} is {noun}; {rule}.", param=path)
    match one_of(part, "type", _TEXTS if role == "assistant" else _KINDS, path):
        case "image":
            expect(part.get("image"), Image.Image, "an open PIL image", f"{path}.image")
            return ImageInput(part["image"], _detail(part, path), *_tiles(part, path), path=f"{path}.image")
        case "image_url":
            return _image_url(part, path)
        case "video_url":
            return _video_url(part, path)
        case "video":
            source = _video_source(part.get("video"), f"{path}.video")
            return VideoInput(source, _sampling(part, path), *_tiles(part, path), path=f"{path}.video")
        case "input_video":
            return _input_video(part, path)
        case text:
            return string(part, text, path)


def _image_url(part: Mapping[str, Any], path: str) -> ImageInput:
    image, inner = _object(part, "image_url", "url", path)
    url = _url(string(image, "url", inner), f"{inner}.url")
    return ImageInput(url, _detail(image, inner), *_tiles(image, inner), path=f"{inner}.url")


def _video_url(part: Mapping[str, Any], path: str) -> VideoInput:
    """Return a `video_url` part. The sampling may stand in its object, or beside it, where Qwen's clients put it."""
    video, inner = _object(part, "video_url", "url", path)
    url = _url(string(video, "url", inner), f"{inner}.url")
    sampling = _sampling(video, inner).or_else(_sampling(part, path))
    return VideoInput(url, sampling, *_tiles(video, inner), path=f"{inner}.url")


def _video_source(source: Any, path: str) -> str | Path | tuple[str, ...]:
    """Return the source of a `video` part: a URL, URLs of frames or, from callers in the same process, a path."""
    if isinstance(source, Path):
        return source
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        for index, frame in enumerate(source):
            expect(frame, str, "the URL of a frame", f"{path}[{index}]")
        return tuple(_url(frame, f"{path}[{index}]") for index, frame in enumerate(source))
    expect(source, str, "a URL or a list of the URLs of frames", path)
    return _url(source, path)


def _input_video(part: Mapping[str, Any], path: str) -> VideoInput:
    video, inner = _object(part, "input_video", "data", path)
    data = string(video, "data", inner)
    url = data if data.startswith("data:") else f"data:;base64,{data}"
    return VideoInput(url, _sampling(video, inner), *_tiles(video, inner), path=f"{inner}.data")


def _object(part: Mapping[str, Any], key: str, needed: str, path: str) -> tuple[Mapping[str, Any], str]:
    """Return a field that must be an object, and its path."""
    value = part.get(key)
    expect(value, Mapping, f'an object with "{needed}"', f"{path}.{key}")
    return cast(Mapping[str, Any], value), f"{path}.{key}"


def _url(url: str, path: str) -> str:
    if not urls.scheme_of(url):
        raise RequestError(f"{path} is not a URI; it must begin with data:, http: or https:.", param=path)
    return url


def _detail(part: Mapping[str, Any], path: str) -> Detail:
    detail: Detail = "auto" if part.get("detail") is None else one_of(part, "detail", get_args(Detail), path)
    return detail


def _tiles(part: Mapping[str, Any], path: str) -> tuple[int | None, int | None]:
    """Return the fewest and the most tiles of an image or a frame; `MediaLoader` checks their range."""
    return _integer(part, "min_dynamic_patch", path), _integer(part, "max_dynamic_patch", path)


def _sampling(owner: Mapping[str, Any], path: str) -> Sampling:
    """Return the sampling that an object asks for. `nframes` is Qwen's name; an `fps` of -1 is vLLM's for none."""
    name = "num_frames" if owner.get("nframes") is None else "nframes"
    fps = owner.get("fps")
    is_number = isinstance(fps, int | float) and not isinstance(fps, bool) and (fps == -1 or 0 < fps < math.inf)
    if fps is not None and not is_number:
        raise RequestError(f"{path}.fps must be a number above 0, or -1 for none.", param=f"{path}.fps")
    return Sampling(_integer(owner, name, path), None if fps is None or fps == -1 else float(fps))


def _integer(owner: Mapping[str, Any], key: str, path: str) -> int | None:
    value = owner.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise RequestError(f"{path}.{key} must be an integer, not {json_type(value)}.", param=f"{path}.{key}")
    return value


def expect(value: Any, kind: type, words: str, path: str) -> None:
    """Raise RequestError if a value is not of a kind, which `words` name."""
    if not isinstance(value, kind):
        raise RequestError(f"{path} must be {words}, not {json_type(value)}.", param=path)


def string(owner: Mapping[str, Any], key: str, path: str) -> str:
    """Return a field that must be a string."""
    value = owner.get(key)
    expect(value, str, "a string", f"{path}.{key}")
    return str(value)


def one_of(owner: Mapping[str, Any], key: str, allowed: Sequence[str], path: str) -> Any:
    """Return a field that must have one of the allowed values."""
    value = owner.get(key)
    if value not in allowed:
        shown = json_type(value) if not isinstance(value, str) else f'"{value[:40]}"'
        words = ", ".join(f'"{choice}"' for choice in allowed)
        raise RequestError(f"{path}.{key} must be one of {words}, not {shown}.", param=f"{path}.{key}")
    return value


def json_type(value: Any) -> str:
    """Return what a value is called in an error message; the value itself may be long, or an image."""
    if value is None:
        return "missing or null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
