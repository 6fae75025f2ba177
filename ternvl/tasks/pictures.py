"""Images that users give, as a path, a URL, bytes or an open image, ready to be sent and measured."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ternvl.errors import ImageError, RequestError
from ternvl.limits import ImageLimits
from ternvl.prompt import urls
from ternvl.prompt.fetch import fetch
from ternvl.prompt.images import decode, to_rgb

ImageSource = str | os.PathLike[str] | bytes | Image.Image
"""A path, a URL (`http:`, `https:`, `data:`), the bytes of a file, or an image that is already open."""

_URL_SCHEMES = ("http", "https", "data", "file")
_SENT_AS_THEY_ARE = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n", "png"), (b"GIF8", "gif"))
"""Beginnings of files that every server reads. Other formats are sent as PNG, which has the same pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as RGB and upright, so that its size is the one that a viewer shows."""

    image: Image.Image
    data: bytes = b""
    """The file that the image was given as; empty if it was given open."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    @property
    def url(self) -> str:
        """A `data:` URI of the image."""
        for beginning, kind in _SENT_AS_THEY_ARE:
            if self.data.startswith(beginning):
                return _data_uri(kind, self.data)
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG", compress_level=1)
        return _data_uri("png", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def open_picture(source: ImageSource | Picture, limits: ImageLimits, name: str = "The image") -> Picture:
    """Return an image that is given in one of the ways of `ImageSource`; blocks while it is fetched and decoded.

    Raises ImageError, in which `name` names the image, if it cannot be fetched or decoded or is over a limit, and
    RequestError for a value of another type.
    """
    match source:
        case Picture():
            return source
        case Image.Image():
            return Picture(to_rgb(source, name))
        case bytes():
            data = source
        case str() if urls.scheme_of(source) in _URL_SCHEMES:
            data = fetch(source, limits, name)
        case str() | os.PathLike():
            data = _read(Path(source), limits, name)
        case _:
            kinds = "a path, a URL, bytes or a PIL image"
            raise RequestError(
                f"{name} is a value of type {type(source).__name__}, but must be {kinds}.", param="image"
            )
    return Picture(decode(data, limits, name), data)


def _read(path: Path, limits: ImageLimits, name: str) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            return file.read(limits.max_image_bytes + 1)  # `decode` refuses what is longer
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} {str(path)!r} cannot be read: {reason}.", code="image_not_fetched") from error
