"""Decodes the bytes of an image to RGB and to tiles within limits, and converts tiles to the vision tower's input."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from ternvl.errors import ConfigError, ImageError, MediaError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.prompt.tiling import TileSettings, scaled_pixels, tiles

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Formats that are accepted if Pillow supports them. None runs a program (as EPS does) or opens other files."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Tiles = list[NDArray[np.uint8]]
"""The tiles of an image, each [S, S, 3], RGB."""

_MAGIC_BYTES = 16
_STRIP_PIXELS = 1 << 22
"""The pixels that are converted at a time, so that a large image is not in memory several times."""
_MAX_SIDE = 1_000_000
"""The most pixels of width and of height. Each row takes memory of its own, however short it is."""
_MAX_SCALED_PIXELS = 1 << 27
"""The most pixels that an image may have while it is scaled, first to its new width and then to its new height."""
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_limits(limits: ImageLimits, videos: VideoLimits | None = None) -> None:
    """Raise ConfigError if a limit is invalid."""
    videos = videos or VideoLimits()
    for config in (limits, videos):
        for each in fields(config):
            _check_limit(each.name, getattr(config, each.name))
    if videos.video_frames > videos.max_video_frames:
        most = videos.max_video_frames
        raise ConfigError(
            f"video_frames is {videos.video_frames}; it must be at most max_video_frames, which is {most}."
        )
    if limits.allow_local_media is not None and not limits.allow_local_media.is_dir():
        raise ConfigError(f"allow_local_media is {limits.allow_local_media}, which is not a folder.")


def _check_limit(name: str, value: object) -> None:
    least = 0 if name in ("max_images", "max_redirects", "max_videos") else 1
    if isinstance(value, float) and not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value}; it must be a number of seconds above 0.")
    if isinstance(value, int) and not isinstance(value, bool) and value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}.")


def decode(data: bytes, limits: ImageLimits, name: str) -> Image.Image:
    """Return the first frame of an encoded image as RGB, rotated by its EXIF orientation, transparency over white.

    `name` names the image in errors, such as "messages[1] image 2". Raises ImageError if the image has more bytes or
    pixels than `limits` allow, if its format is not one of `FORMATS`, and if its data is damaged or incomplete. The
    number of pixels is read from the header, before anything is decoded.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes).")
    if len(data) > limits.max_image_bytes:
        raise ImageError(
            f"{name} has {len(data)} bytes, but an image may have at most {limits.max_image_bytes}.",
            code="image_too_large",
            too_large=True,
        )
    image = _open(data, name)
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, but an image may have at most {limits.max_image_pixels} in all.",
            code="image_too_large",
            too_large=True,
        )
    if max(width, height) > _MAX_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels, but a side of an image may have at most {_MAX_SIDE}.",
            code="image_too_large",
            too_large=True,
        )
    return to_rgb(image, name)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an open image as RGB, rotated by its EXIF orientation, transparency over white, 16-bit values scaled.

    Raises ImageError if its data is damaged, its colours cannot be converted, or it takes more memory than there is.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise exceptions of any type, whose texts may contain memory addresses
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise too_much_memory(image.size, name) from error
        cut_short = "truncated" in str(error).lower()
        reason = "its data ends too early" if cut_short else "its data is damaged"
        raise ImageError(f"{name} could not be decoded: {reason}.") from error
    if not all(image.size):
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height}).")
    try:
        return _rotate(_flatten(_to_eight_bits(image)), _orientation(image))
    except MemoryError as error:
        raise too_much_memory(image.size, name) from error
    except Exception as error:
        raise ImageError(f"{name} could not be decoded: its colours (mode {image.mode}) are not supported.") from error


def too_much_memory(size: tuple[int, int], name: str, kind: type[MediaError] = ImageError) -> MediaError:
    """Return the error for an image or a frame of a video that takes too much memory. It names width and height."""
    reason = f"its {size[0]} x {size[1]} pixels take more memory than the pixels of an image may"
    return kind(f"{name} could not be decoded: {reason}.", code=f"{kind.kind}_too_large", too_large=True)


def to_tiles(image: Image.Image, settings: TileSettings, name: str, kind: type[MediaError] = ImageError) -> Tiles:
    """Cut an image, or a frame of a video, into tiles. Raises the error `kind` if scaling it takes too much memory."""
    if scaled_pixels(*image.size, settings) > _MAX_SCALED_PIXELS:
        raise too_much_memory(image.size, name, kind)
    try:
        return [np.asarray(tile) for tile in tiles(image, **asdict(settings))]
    except MemoryError as error:
        raise too_much_memory(image.size, name, kind) from error


def decode_tiles(data: bytes, settings: TileSettings, limits: ImageLimits, name: str) -> Tiles:
    """Return the tiles of an encoded image. Raises what `decode` and `to_tiles` raise."""
    return to_tiles(decode(data, limits, name), settings, name)


def to_pixel_values(tiles: Sequence[Image.Image | NDArray[np.uint8]]) -> Tensor:
    """Convert RGB tiles of side S to [N, 3, S, S] float32, scaled to 0..1 and normalised by ImageNet's mean and std."""
    import torch  # takes seconds, and clients of a server only decode

    pixels = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles]))  # [N, S, S, 3] uint8
    values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return values.sub_(mean[:, None, None]).div_(std[:, None, None])


def digest(tiles: Tiles) -> bytes:
    """Return the SHA-256 of the number of tiles and their pixels."""
    found = hashlib.sha256(len(tiles).to_bytes(8, "big"))
    for tile in tiles:
        found.update(np.ascontiguousarray(tile).data)
    return found.digest()


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header of an image. Pillow's own `open` is not used because its limit of pixels is global."""
    Image.init()
    for image_format in FORMATS:
        factory, accepts = Image.OPEN.get(image_format, (None, None))
        if factory is None or (accepts is not None and accepts(data[:_MAGIC_BYTES]) is not True):
            continue
        try:
            return factory(BytesIO(data), "")
        except MemoryError as error:
            raise ImageError(f"{name} could not be decoded: its header takes more memory than an image may.") from error
        except Exception as error:
            raise ImageError(
                f"{name} could not be decoded: it looks like {image_format}, but its header is damaged or incomplete."
            ) from error
    supported = ", ".join(image_format for image_format in FORMATS if image_format in Image.OPEN)
    raise ImageError(f"{name} is not an image in a supported format ({supported}).", code="unsupported_image")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _rotate(image: Image.Image, orientation: int) -> Image.Image:
    method = _ORIENTATIONS.get(orientation)
    return image if method is None else image.transpose(method)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit values to 8 bits, and 32-bit values, whose range is not known, from their minimum and maximum."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _extremes(image)
    scale = 255 / (high - low) if high > low and math.isfinite(high - low) else 0.0

    def to_grey(strip: Image.Image) -> Image.Image:
        return Image.fromarray(((_values(strip) - low) * scale).round().astype(np.uint8))

    return _by_strips(image, "L", to_grey)


def _extremes(image: Image.Image) -> tuple[float, float]:
    found = [(float(values.min()), float(values.max())) for values in map(_values, _strips(image))]
    return min(low for low, _ in found), max(high for _, high in found)


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to RGB, with transparency over white."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # a copy of a large image takes hundreds of MB
    return _by_strips(image, "RGB", _over_white)


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _by_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to a mode, a few rows at a time. Each pixel must depend on its own value alone."""
    if image.width * image.height <= _STRIP_PIXELS:
        return convert(image)
    made, top = Image.new(mode, image.size), 0
    for strip in _strips(image):
        made.paste(convert(strip), (0, top))
        top += strip.height
    return made


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))
