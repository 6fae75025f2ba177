"""Frames of a video, as the server samples them: in a process of its own, within the same limits."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ternvl.errors import RequestError
from ternvl.limits import VideoLimits
from ternvl.prompt.parts import Sampling
from ternvl.prompt.video.process import sample

MAX_FRAMES = 128


def sample_frames(path: str | Path, count: int) -> list[Image.Image]:
    """Return `count` frames of a video, evenly distributed as the official code has them, as RGB.

    A video with fewer frames repeats some of them. Raises RequestError for a `count` out of range, and VideoError for a
    file that cannot be read or decoded, or that needs PyAV where it is not installed.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_FRAMES:
        raise RequestError(f"frames is {count!r}, but must be an integer from 1 to {MAX_FRAMES}.", param="frames")
    path = Path(path).expanduser()
    return sample(path, Sampling(count), VideoLimits(), f"The video {str(path)!r}", lambda frame: frame)
