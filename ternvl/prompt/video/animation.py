"""Animations, which Pillow reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from PIL import GifImagePlugin, WebPImagePlugin

from ternvl.prompt.video.clips import Job, Pixels, check_frames, check_pixels


class Animation:
    """A GIF or WebP file."""

    def __init__(self, file: BinaryIO, job: Job) -> None:
        kind = GifImagePlugin.GifImageFile if file.read(3) == b"GIF" else WebPImagePlugin.WebPImageFile
        file.seek(0)
        self._image = kind(file, "")
        check_pixels(*self._image.size, job)
        self.num_frames = int(self._image.n_frames)
        check_frames(self.num_frames, job)

    def seconds(self) -> float:
        """Return the sum of the frames' own times."""
        return sum(self._duration(index) for index in range(self.num_frames)) / 1000

    def _duration(self, index: int) -> float:
        self._image.seek(index)
        self._image.load()
        return float(self._image.info.get("duration") or 100)  # browsers show a frame without a time for a tenth

    def frames(self, indices: Sequence[int]) -> Iterator[Pixels]:
        """Yield frames as they are composed of the frames before them."""
        for index in indices:
            self._image.seek(index)
            mode = "RGBA" if self._image.has_transparency_data else "RGB"
            yield Pixels(*self._image.size, mode, 0, self._image.convert(mode).tobytes())
