"""What the two readers of videos share: the job, its limits, and the frames that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """How a video is sampled, and what it may cost. `fps` makes `num_frames` an upper bound."""

    num_frames: int
    fps: float | None
    max_scanned: int
    max_pixels: int
    max_memory: int
    max_seconds: float


@dataclass(frozen=True, slots=True)
class Pixels:
    """A frame. `mode` is Pillow's, "RGB" or "RGBA"; `rotation` says how far to turn it, in degrees to the left."""

    width: int
    height: int
    mode: str
    rotation: int
    data: bytes


class RefusedError(Exception):
    """A file that is not sampled. `kind` is a key of `process.REASONS`, and `values` complete its sentence."""

    def __init__(self, kind: str, **values: Any) -> None:
        super().__init__(kind)
        self.kind, self.values = kind, values


class Clip(Protocol):
    """A file that is open, and has `num_frames` frames, in the order in which they are shown."""

    num_frames: int

    def seconds(self) -> float:
        """Return how long the frames are shown."""

    def frames(self, indices: Sequence[int]) -> Iterator[Pixels]:
        """Yield frames. The indices ascend."""


def frame_indices(num_frames: int, total: int) -> list[int]:
    """Return the frames that `num_frames` stand for `total`: about the middle of each of as many equal segments.

    A frame may occur more than once if there are too few. Source: `get_index` of InternVL's model cards.
    """
    segment = (total - 1) / num_frames
    return [int(segment / 2 + round(segment * index)) for index in range(num_frames)]


def check_pixels(width: int, height: int, job: Job) -> None:
    """Refuse a frame that is too large."""
    if width * height > job.max_pixels:
        raise RefusedError("pixels", width=width, height=height)


def check_frames(count: int, job: Job) -> None:
    """Refuse a video with too many frames."""
    if count > job.max_scanned:
        raise RefusedError("frames")
