"""Decodes images in a process of its own, so that a hostile file cannot crash, exhaust or take over the server.

`pool.py` runs this module with the fields of `WorkerLimits` as JSON. An empty line says that it is ready. Each job is a
line of JSON, the fields of `ImageJob`, and the bytes of an image. The answer is a line `{"num_tiles": N}` and the bytes
of the tiles, or why there are none: `{"refused": message, "code": ..., "too_large": ...}` for the user, `{"failed":
message}` for the server's log.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ternvl.errors import ImageError
from ternvl.limits import ImageLimits
from ternvl.prompt.images import Tiles, decode_tiles
from ternvl.prompt.tiling import TileSettings
from ternvl.workers.confine import confine
from ternvl.workers.trim import Trimmer, trim_while_idle

_LATE = ("ImageCms", "ImageColor", "ImageFilter", "ImagePalette", "TiffImagePlugin")
"""Modules that Pillow imports when it first needs them, which would be too late: a worker opens no files."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What the images of a worker may have, and what the worker may take of the machine."""

    max_image_bytes: int
    max_image_pixels: int
    max_memory: int
    """Bytes of address space."""


@dataclass(frozen=True, slots=True)
class ImageJob:
    """An image to be decoded and cut."""

    name: str
    num_bytes: int
    min_num: int
    max_num: int
    thumbnail: bool
    side: int

    @classmethod
    def of(cls, data: bytes, settings: TileSettings, name: str) -> ImageJob:
        """Return the job for the bytes of an image."""
        return cls(name, len(data), **asdict(settings))

    @property
    def settings(self) -> TileSettings:
        """How the image is cut."""
        return TileSettings(self.min_num, self.max_num, self.thumbnail, self.side)


def prepare() -> None:
    """Import what decoders import late, and keep them to one thread, so that an image has no more than its share."""
    Image.init()
    for name in _LATE:
        import_module(f"PIL.{name}")
    if avif := sys.modules.get("PIL.AvifImagePlugin"):
        vars(avif)["DEFAULT_MAX_THREADS"] = 1
    for encoding in ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        b"".decode(encoding)


def answer(data: bytes, job: ImageJob, limits: ImageLimits) -> tuple[dict[str, Any], Tiles]:
    """Return the line for an image, and its tiles."""
    try:
        tiles = decode_tiles(data, job.settings, limits, job.name)
    except ImageError as error:
        return {"refused": str(error), "code": error.code, "too_large": error.too_large}, []
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:1000]}, []
    return {"num_tiles": len(tiles)}, tiles


def serve(jobs: BinaryIO, out: BinaryIO, limits: ImageLimits) -> None:
    """Answer jobs until there are no more."""
    trim = Trimmer()
    out.write(b"\n")
    out.flush()
    while line := jobs.readline():
        job = ImageJob(**json.loads(line))
        header, tiles = answer(jobs.read(job.num_bytes), job, limits)
        out.write(json.dumps(header).encode() + b"\n")
        for tile in tiles:
            out.write(np.ascontiguousarray(tile).data)
        out.flush()
        del tiles  # so that their memory can be returned
        trim()
        trim_while_idle(jobs)


def main() -> None:
    """Serve the jobs on the standard input."""
    limits = WorkerLimits(**json.loads(sys.argv[1]))
    prepare()
    confine(limits.max_memory)
    images = ImageLimits(max_image_bytes=limits.max_image_bytes, max_image_pixels=limits.max_image_pixels)
    serve(sys.stdin.buffer, sys.stdout.buffer, images)


if __name__ == "__main__":
    main()
