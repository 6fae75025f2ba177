"""Runs the worker that samples a video, within limits, and reads the frames that it sends.

What the worker sends is not trusted: a file that takes it over can send wrong pictures, but nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile
from threading import Event, Timer
from typing import IO, Any, TypeVar

from PIL import Image

from ternvl.config import VideoLimits
from ternvl.errors import VideoError
from ternvl.prompt.images import to_rgb
from ternvl.prompt.parts import Sampling
from ternvl.prompt.video.clips import Job

REASONS = {
    "codec": "could not be decoded: its codec {codec} is not supported",
    "damaged": "could not be decoded: its data is damaged",
    "frames": "has more than {max_scanned} frames, the most that a video may have",
    "memory": "could not be decoded: it takes more memory than a video may",
    "no_video": "could not be decoded: it holds no video",
    "not_installed": "could not be decoded: videos other than GIF and WebP need PyAV, which is not installed here "
    "(pip install 'ternvl[video]')",
    "pixels": "has frames of {width} x {height} pixels, but a frame may have at most {max_pixels} in all",
    "truncated": "could not be decoded: its data ends too early",
    "unsupported": "is not a video in a supported format (MP4, MOV, WebM, MKV, AVI, GIF, WebP)",
}
"""Why a video is refused, by the worker's words for it."""

MAX_MEMORY = 2 * 1024**3
"""The most bytes of address space that the worker may have."""

_ROOT = Path(__file__).parents[3]
"""The folder of the package."""
_CODES = {"not_installed": "video_not_supported", "unsupported": "unsupported_video", "codec": "unsupported_video"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

T = TypeVar("T")


def sample(
    source: bytes | Path, sampling: Sampling, limits: VideoLimits, name: str, cut: Callable[[Image.Image], T]
) -> list[T]:
    """Return what `cut` makes of each sampled frame of a video, an RGB image. Only one frame is held at a time.

    `sampling` has a number of frames. `name` is what errors call the video. Raises VideoError for a video that is over
    a limit, cannot be decoded or takes too long.
    """
    if source == b"":
        raise VideoError(f"{name} is empty (0 bytes).")
    assert sampling.num_frames is not None
    job = Job(
        sampling.num_frames,
        sampling.fps,
        limits.max_scanned_frames,
        limits.max_video_pixels,
        MAX_MEMORY,
        limits.video_decode_timeout,
    )
    with _open(source, name) as file, _running(job, file) as (output, is_late):
        try:
            indices = _indices(output, job)
            made = {index: cut(_frame(output, job, name)) for index in sorted(set(indices))}
        except _RefusalError as refusal:
            raise _error(refusal.values, job, name) from None
        except (ValueError, KeyError, TypeError, OSError):
            if is_late.is_set():
                seconds = f"{limits.video_decode_timeout:g} seconds"
                raise VideoError(f"{name} could not be decoded: it took longer than {seconds}.") from None
            raise _error({"refused": "damaged"}, job, name) from None
    return [made[index] for index in indices]


class _RefusalError(Exception):
    """The worker refuses the video."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.values = values


def _open(source: bytes | Path, name: str) -> IO[bytes]:
    """Return a file that can be sought in, as most containers need."""
    if isinstance(source, Path):
        try:
            return source.open("rb")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            raise VideoError(f"{name} cannot be read: {reason}.", code="video_not_fetched") from None
    file = TemporaryFile()  # noqa: SIM115  # the caller closes it
    file.write(source)
    file.seek(0)
    return file


@contextmanager
def _running(job: Job, file: IO[bytes]) -> Iterator[tuple[IO[bytes], Event]]:
    """Run the worker. Yield its output, and an event that is set if it was ended because its time was over."""
    paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "ternvl.prompt.video.worker", json.dumps(asdict(job))]
    is_late = Event()

    def end() -> None:
        is_late.set()
        process.kill()

    # A session of its own keeps Ctrl-C in a terminal, which lets a server finish its requests, away from the worker.
    with Popen(
        command,
        stdin=file,
        stdout=PIPE,
        stderr=DEVNULL,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
    ) as process:
        timer = Timer(job.max_seconds, end)
        timer.start()
        assert process.stdout is not None
        try:
            yield process.stdout, is_late
        finally:
            timer.cancel()
            process.kill()


def _indices(output: IO[bytes], job: Job) -> list[int]:
    indices = _line(output)["indices"]
    if not 1 <= len(indices) <= job.num_frames or not all(isinstance(index, int) for index in indices):
        raise ValueError("not a list of frames")
    return list(indices)


def _frame(output: IO[bytes], job: Job, name: str) -> Image.Image:
    header = _line(output)
    size, mode = (int(header["width"]), int(header["height"])), str(header["mode"])
    if min(size) < 1 or size[0] * size[1] > job.max_pixels or mode not in ("RGB", "RGBA"):
        raise ValueError("not a frame")
    data = output.read(size[0] * size[1] * len(mode))
    turn = _TURNS.get(int(header["rotation"]) % 360)
    frame = to_rgb(Image.frombytes(mode, size, data), name)
    return frame if turn is None else frame.transpose(turn)


def _line(output: IO[bytes]) -> dict[str, Any]:
    """Return the next line of JSON. Raises _RefusalError for one that says why the video is refused."""
    values = json.loads(output.readline(10_000))
    if "refused" in values:
        raise _RefusalError(values)
    return dict(values)


def _error(values: dict[str, Any], job: Job, name: str) -> VideoError:
    kind = str(values["refused"])
    reason = REASONS.get(kind, REASONS["damaged"]).format_map(asdict(job) | values)
    if kind in ("pixels", "frames"):
        return VideoError(f"{name} {reason}.", code="video_too_large", too_large=True)
    return VideoError(f"{name} {reason}.", code=_CODES.get(kind))
