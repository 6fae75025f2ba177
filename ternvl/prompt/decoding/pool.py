"""Decodes images in a few worker processes with limits on memory and time, so that no image can hurt the server.

What a worker sends is not trusted: an image that takes it over can send wrong pictures, but nothing else.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from subprocess import PIPE
from typing import IO, Any

import numpy as np

from ternvl.errors import ImageError
from ternvl.limits import ImageLimits
from ternvl.prompt.decoding.worker import ImageJob, WorkerLimits
from ternvl.prompt.images import Tiles
from ternvl.prompt.tiling import TileSettings
from ternvl.workers.pool import WorkerPool
from ternvl.workers.start import start
from ternvl.workers.worker import LostError, Worker

_BASE_MEMORY = 512 * 1024**2
_MEMORY_OF_PIXEL = 16
"""Bytes that a pixel may take. Pillow holds 4, a rotated copy has 4 more, and decoders have what they need."""


class DecoderPool:
    """Up to `size` worker processes, which are started when they are needed and used again. It is thread-safe.

    One client never has all of them, nor one request more than half, so others do not wait for its slow images.
    """

    def __init__(self, size: int, limits: ImageLimits, max_seconds: float) -> None:
        """`max_seconds` is the time that decoding and cutting an image may take."""
        memory = _BASE_MEMORY + _MEMORY_OF_PIXEL * limits.max_image_pixels
        confined = WorkerLimits(limits.max_image_bytes, limits.max_image_pixels, memory)
        self.workers = WorkerPool(
            size, partial(_ImageWorker.of, confined, max_seconds), max(1, size - 1), max(1, size // 2)
        )

    def start(self) -> None:
        """Start the first worker, and do not wait for it."""
        self.workers.start()

    def close(self) -> None:
        """End all workers. An image that is being decoded is given up, and so are those that wait."""
        self.workers.close()

    @property
    def state(self) -> dict[str, Any]:
        """The workers, by what they do now, and how many images wait for one."""
        return self.workers.state

    def decode(self, data: bytes, settings: TileSettings, name: str, client: str, request: str) -> Tiles:
        """Return the tiles of an encoded image, as `decode_tiles` does.

        Images of the same client and of the same request share their part of the workers. Raises ImageError also for an
        image that takes too long or crashes its decoder, OverloadedError if no worker is free for long,
        UnavailableError if no process can be started, and RuntimeError if a worker fails for a reason of its own.
        """
        with self.workers.worker(name, client, request) as worker:
            return worker.decode(data, settings, name)


class _ImageWorker(Worker):
    """A process that decodes one image after another."""

    @classmethod
    def of(cls, limits: WorkerLimits, max_seconds: float) -> _ImageWorker:
        """Start a process."""
        return cls(start("ternvl.prompt.decoding.worker", limits, PIPE), max_seconds)

    def decode(self, data: bytes, settings: TileSettings, name: str) -> Tiles:
        """Return the tiles of an image. Raises ImageError, and RuntimeError if the process fails."""
        job = ImageJob.of(data, settings, name)
        try:
            tiles = self.run([json.dumps(asdict(job)).encode() + b"\n", data], partial(_tiles, job))
        except LostError as lost:
            raise self._error_of(lost, name) from None
        if isinstance(tiles, Exception):
            raise tiles
        return tiles

    def _error_of(self, lost: LostError, name: str) -> Exception:
        """Return the error for an image whose worker ended, or sent what is no answer."""
        if lost.is_late:
            took = f"it took longer than {self._max_seconds:g} seconds, the most that an image may take"
            return ImageError(f"{name} could not be decoded: {took}.")
        if lost.status > 0:  # not a signal, by which a decoder crashes
            return RuntimeError(f"The process that decodes images ended with status {lost.status}.")
        return ImageError(f"{name} could not be decoded: its data crashes the decoder.")


def _tiles(job: ImageJob, answer: dict[str, Any], out: IO[bytes]) -> Tiles | Exception:
    """Read the tiles of an image, or why there are none. Raises ValueError and others if they are not as agreed."""
    if "refused" in answer:
        is_large = answer.get("too_large") is True
        return ImageError(str(answer["refused"]), code=str(answer.get("code")), too_large=is_large)
    if "failed" in answer:
        return RuntimeError(f"The process that decodes images failed: {str(answer['failed'])[:1000]}")
    shape = (int(answer["num_tiles"]), job.side, job.side, 3)
    if not 1 <= shape[0] <= job.max_num + 1:
        raise ValueError("not a number of tiles")
    return list(np.frombuffer(out.read(int(np.prod(shape))), np.uint8).reshape(shape))
