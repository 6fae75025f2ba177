"""Decoding: limits, formats, orientation, transparency, damage; and normalisation."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from ternvl.errors import ImageError
from ternvl.limits import ImageLimits
from ternvl.prompt.images import decode, to_pixel_values, to_rgb

LIMITS = ImageLimits()
NAME = "messages[1] image 2"
ORIENTATION = 0x0112


def picture(width: int = 24, height: int = 16) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 10 % 256, y * 15 % 256, (x + y) * 5 % 256], -1).astype(np.uint8))


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for row in np.asarray(image).tolist() for pixel in row]


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def refused(data: bytes, limits: ImageLimits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, limits, NAME)
    message = str(caught.value)
    assert message.startswith(NAME)
    assert message.endswith(".")
    assert "0x" not in message
    assert "<" not in message
    assert "\n" not in message
    return caught.value


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    made = decode(encoded(picture(), image_format), LIMITS, NAME)
    assert made.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(made), np.asarray(picture()))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats(image_format: str) -> None:
    if image_format != "JPEG" and not features.check(image_format.lower()):
        pytest.skip(f"Pillow lacks {image_format}")
    flat = Image.new("RGB", (20, 10), (200, 40, 90))
    made = decode(encoded(flat, image_format), LIMITS, NAME)
    assert (made.mode, made.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(made).astype(int) - (200, 40, 90)).max() < 12


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(picture(), image_format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    made = decode(data, LIMITS, NAME)
    assert made.size == ((16, 24) if orientation >= 5 else (24, 16))
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"II*\x00\x08\x00\x00\x00\xff\xff\x12", b"nonsense", b"MM\x00*\xff\xff\xff\xff"])
def test_broken_exif_is_ignored(exif: bytes) -> None:
    assert decode(encoded(picture(), "JPEG", exif=b"Exif\x00\x00" + exif), LIMITS, NAME).size == (24, 16)


def test_rgba_is_composited_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)])
    assert pixels(decode(encoded(image), LIMITS, NAME)) == [
        (255, 0, 0), (255, 255, 255), (204, 204, 204)
    ]  # fmt: skip


def test_grey_with_alpha_is_composited_over_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(100, 255), (0, 0)])
    assert pixels(decode(encoded(image), LIMITS, NAME)) == [(100, 100, 100), (255, 255, 255)]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_transparency_is_composited_over_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    made = decode(encoded(image, transparency=transparency), LIMITS, NAME)
    assert pixels(made) == [(10, 20, 30), (255, 255, 255)]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_becomes_white(mode: str, key: tuple[int, int, int] | int) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 50 if mode == "L" else (50, 50, 50))
    made = decode(encoded(image, transparency=key), LIMITS, NAME)
    assert pixels(made) == [(255, 255, 255), (50, 50, 50)]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, LIMITS, NAME).getpixel((4, 4)) == (255, 0, 0)


def test_sixteen_bit_grey_is_scaled() -> None:
    values = np.array([[0, 257, 0x8080, 0xFFFF]], dtype=np.uint16)
    for image_format in ("PNG", "TIFF"):
        made = decode(encoded(Image.fromarray(values), image_format), LIMITS, NAME)
        assert pixels(made) == [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]


def test_floating_point_grey_is_stretched() -> None:
    values = np.array([[-1.0, 0.0, 1.0, np.nan]], dtype=np.float32)
    made = decode(encoded(Image.fromarray(values), "TIFF"), LIMITS, NAME)
    assert [pixel[0] for pixel in pixels(made)] == [0, 128, 255, 128]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    source = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    made = decode(encoded(source, "TIFF"), LIMITS, NAME)
    assert (made.mode, made.getpixel((8, 8))) == ("RGB", (255, 255, 255))


def test_cmyk_jpeg() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = decode(encoded(red, "JPEG", quality=95), LIMITS, NAME).getpixel((8, 8))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 240
    assert pixel[1] < 15
    assert pixel[2] < 15


def test_bytes_over_the_limit() -> None:
    error = refused(encoded(picture()), ImageLimits(max_image_bytes=50))
    assert error.too_large
    assert "50" in str(error)


def test_pixels_over_the_limit() -> None:
    error = refused(encoded(picture()), ImageLimits(max_image_pixels=24 * 16 - 1))
    assert error.too_large
    assert "24 x 16" in str(error)
    assert decode(encoded(picture()), ImageLimits(max_image_pixels=24 * 16), NAME).size == (24, 16)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    error = refused(png_header(100_000, 100_000))
    assert error.too_large
    assert "100000 x 100000" in str(error)


def test_the_limit_is_the_callers_own_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(encoded(picture()), LIMITS, NAME).size == (24, 16)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image at all",
        b"<html><body>404</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"BM",
        b"II*\x00",
        png_header(0, 10),
    ],
)
def test_data_of_no_image_is_refused(data: bytes) -> None:
    assert not refused(data).too_large


@pytest.mark.parametrize("image_format", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "SGI", "DDS"])
def test_other_formats_are_refused(image_format: str) -> None:
    assert "format" in str(refused(encoded(picture(), image_format)))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_data_is_refused(image_format: str) -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    refused(encoded(image, image_format)[:900])


def test_overwritten_data_is_refused() -> None:
    data = bytearray(encoded(picture(200, 200)))
    data[60:90] = bytes(30)
    assert "its data is damaged" in str(refused(bytes(data)))


@pytest.mark.filterwarnings("ignore")
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255))),
)
def test_damaged_data_raises_nothing_but_image_errors(image_format: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(picture(), image_format))
    for index, value in changes:
        data[index % len(data)] = value
    try:
        outcome = decode(bytes(data), LIMITS, NAME).mode
    except ImageError as error:
        outcome = str(error)
    assert outcome == "RGB" or outcome.startswith(NAME)
    assert "0x" not in outcome


def test_pixel_values_are_normalised_as_torchvision_does() -> None:
    images = [picture(32, 32), Image.effect_noise((32, 32), 80).convert("RGB")]
    values = to_pixel_values(images)
    assert (values.shape, values.dtype, values.is_contiguous()) == ((2, 3, 32, 32), torch.float32, True)
    for image, row in zip(images, values, strict=True):
        scaled = np.asarray(image).astype(np.float64) / 255
        expected = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(row.permute(1, 2, 0).numpy(), expected, atol=2e-6)


def test_a_cameras_picture_with_several_frames_gives_its_first() -> None:
    for image_format in ("MPO", "WEBP", "TIFF", "PNG"):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        red, _, blue = pixels(decode(data, LIMITS, NAME))[0]
        assert red > 200, image_format
        assert blue < 60, image_format


def test_colours_that_cannot_be_converted_are_refused() -> None:
    with pytest.raises(ImageError, match=r"^messages\[1\] image 2 .* its colours \(mode La\) are not supported"):
        to_rgb(Image.new("La", (4, 4)), NAME)


def test_an_open_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        to_rgb(Image.new("RGB", (0, 4)), NAME)
