"""Small images of every accepted format, and damage to them that a seed determines."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, features

SAMPLES: list[tuple[str, str, dict[str, Any]]] = [
    *[("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK")],
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
    ("MPO", "RGB", {"save_all": True}),
    *[("PNG", mode, {}) for mode in ("RGB", "RGBA", "LA", "1", "P", "I;16")],
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "RGB", {"save_all": True}),
    *[("WEBP", mode, options) for mode in ("RGB", "RGBA") for options in ({}, {"lossless": True})],
    ("WEBP", "RGB", {"save_all": True}),
    ("GIF", "P", {}),
    ("GIF", "P", {"save_all": True}),
    *[("BMP", mode, {}) for mode in ("RGB", "P", "1")],
    *[("TIFF", mode, {}) for mode in ("RGB", "RGBA", "1", "L", "CMYK", "LAB", "F", "I", "I;16")],
    *[("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")],
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"save_all": True}),
    *([("AVIF", mode, {"speed": 10}) for mode in ("RGB", "RGBA")] if features.check("avif") else []),
]
"""Format, mode and options of Pillow's `save`."""

SPECIAL = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@cache
def sample(index: int) -> bytes:
    """The file of a row of `SAMPLES`."""
    image_format, mode, options = SAMPLES[index]
    pixels = np.random.default_rng(index).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((80, 60)).convert("L" if mode == "I;16" else "RGB").convert(mode)
    more = {"append_images": [image.transpose(Image.Transpose.ROTATE_180)] * 2} if "save_all" in options else {}
    data = BytesIO()
    image.save(data, image_format, **options, **more)
    return data.getvalue()


def mutation(seed: int) -> tuple[str, bytes]:
    """A format, and a damaged file of it."""
    rng = random.Random(seed)
    index = seed % len(SAMPLES)
    data = bytearray(sample(index))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        data = rng.choice(_DAMAGES)(data, rng)
    is_png = bytes(data[:8]) == b"\x89PNG\r\n\x1a\n"
    return SAMPLES[index][0], _with_checksums(bytes(data)) if is_png and rng.random() < 0.7 else bytes(data)


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(1, 20)):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return data


def _number(data: bytearray, rng: random.Random) -> bytearray:
    size, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
    at = _place(data, rng)
    data[at : at + size] = (rng.choice(SPECIAL) & (256**size - 1)).to_bytes(size, order)
    return data


def _noise(data: bytearray, rng: random.Random) -> bytearray:
    at = _place(data, rng)
    run = rng.randbytes(rng.choice((1, 4, 16, 300)))
    data[at : at + len(run)] = run
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: _place(data, rng)]


def _drop(data: bytearray, rng: random.Random) -> bytearray:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 8, 100))]
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 12, 200))] * rng.choice((1, 2, 50))
    return data


def _splice(data: bytearray, rng: random.Random) -> bytearray:
    other = sample(rng.randrange(len(SAMPLES)))
    return data[: _place(data, rng)] + other[rng.randrange(len(other)) :]


def _empty(data: bytearray, rng: random.Random) -> bytearray:
    at = _place(data, rng)
    size = min(rng.choice((4, 32, 400)), len(data) - at)
    data[at : at + size] = bytes(size)
    return data


_DAMAGES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    *(_flip, _number, _number, _noise, _cut, _drop, _repeat, _splice, _empty),
)


def _place(data: bytearray, rng: random.Random) -> int:
    """Half of all places are in the first 200 bytes, where headers are."""
    return rng.randrange(max(1, min(len(data), 200) if rng.random() < 0.5 else len(data)))


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold, so that damage is not found out by these."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + size]
        out.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(out)
