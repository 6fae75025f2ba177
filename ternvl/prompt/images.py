"""Decodes the bytes of an image to RGB within limits, and converts tiles to the vision tower's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageFile

from ternvl.config import ImageLimits, VideoLimits
from ternvl.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Formats that are accepted if Pillow supports them. None runs a program (as EPS does) or opens other files."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MAGIC_BYTES = 16
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
    return to_rgb(image, name)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an open image as RGB, rotated by its EXIF orientation, transparency over white, 16-bit values scaled.

    Raises ImageError if its data is damaged or its colours cannot be converted.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise exceptions of any type, whose texts may contain memory addresses
        cut_short = "truncated" in str(error).lower()
        reason = "its data ends too early" if cut_short else "its data is damaged"
        raise ImageError(f"{name} could not be decoded: {reason}.") from error
    if not all(image.size):
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height}).")
    try:
        return _rotate(_flatten(_to_eight_bits(image)), _orientation(image))
    except Exception as error:
        raise ImageError(f"{name} could not be decoded: its colours (mode {image.mode}) are not supported.") from error


def to_pixel_values(tiles: Sequence[Image.Image]) -> Tensor:
    """Convert RGB tiles of side S to [N, 3, S, S] float32, scaled to 0..1 and normalised by ImageNet's mean and std."""
    import torch  # takes seconds, and clients of a server only decode

    pixels = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles]))  # [N, S, S, 3] uint8
    values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return values.sub_(mean[:, None, None]).div_(std[:, None, None])


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header of an image. Pillow's own `open` is not used because its limit of pixels is global."""
    Image.init()
    for image_format in FORMATS:
        factory, accepts = Image.OPEN.get(image_format, (None, None))
        if factory is None or (accepts is not None and accepts(data[:_MAGIC_BYTES]) is not True):
            continue
        try:
            return factory(BytesIO(data), "")
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
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (float(values.min()), float(values.max()))
    scale = 255 / (high - low) if high > low and math.isfinite(high - low) else 0.0
    return Image.fromarray(((values - low) * scale).round().astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to RGB, with transparency over white."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # a copy of a large image takes hundreds of MB
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
