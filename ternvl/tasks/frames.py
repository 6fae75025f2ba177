"""Frames of a video: of a GIF by Pillow, of other files by PyAV if it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from ternvl.errors import ConfigError, ImageError, RequestError
from ternvl.prompt.images import to_rgb

MAX_FRAMES = 128


def sample_frames(path: str | Path, count: int) -> list[Image.Image]:
    """Return `count` frames of a video, evenly distributed as the official code has them, as RGB.

    A video with fewer frames repeats some of them. Raises RequestError for a `count` out of range, ImageError for a
    file that cannot be read, and ConfigError if it needs PyAV and that is not installed.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_FRAMES:
        raise RequestError(f"frames is {count!r}, but must be an integer from 1 to {MAX_FRAMES}.", param="frames")
    path = Path(path).expanduser()
    read = _gif_frames if _is_gif(path) else _video_frames
    return _pick(lambda: read(path), count, path)


def frame_indices(total: int, count: int) -> list[int]:
    """Return which of `total` frames are taken: `int(segment / 2 + round(segment * i))`, as in the official code."""
    segment = (total - 1) / count
    return [int(segment / 2 + round(segment * index)) for index in range(count)]


def _is_gif(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GIF8"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"The video {str(path)!r} cannot be read: {reason}.", code="image_not_fetched") from error


def _pick(read: Callable[[], Iterator[Any]], count: int, path: Path) -> list[Image.Image]:
    """Read a video twice: to count its frames, which headers tell wrongly, and to keep those that are taken."""
    try:
        indices = frame_indices(total, count) if (total := sum(1 for _ in read())) else []
        kept = {index: _to_image(frame) for index, frame in _at(read(), set(indices))}
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise ImageError(f"The video {str(path)!r} cannot be decoded: {error}.") from error
    if not kept:
        raise ImageError(f"The video {str(path)!r} has no frames.")
    return [kept[index] for index in indices]


def _at(frames: Iterator[Any], indices: Collection[int]) -> Iterator[tuple[int, Any]]:
    return ((index, frame) for index, frame in enumerate(frames) if index in indices)


def _to_image(frame: Any) -> Image.Image:
    image = frame.copy() if isinstance(frame, Image.Image) else frame.to_image()  # Pillow has one image for all frames
    return to_rgb(image, "A frame of the video")


def _gif_frames(path: Path) -> Iterator[Image.Image]:
    with Image.open(path, formats=["GIF"]) as file:
        yield from ImageSequence.Iterator(file)


def _video_frames(path: Path) -> Iterator[Any]:
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            yield from container.decode(video=0)
    except (av.FFmpegError, IndexError) as error:
        raise ImageError(f"The video {str(path)!r} cannot be decoded: {error}.") from error


def _pyav() -> Any:
    try:
        return importlib.import_module("av")  # an optional package, so it is not imported by a statement
    except ImportError:
        raise ConfigError(
            "Videos other than GIF need PyAV, which is not installed: run `pip install av`, or give the frames as "
            "images to `views`."
        ) from None
