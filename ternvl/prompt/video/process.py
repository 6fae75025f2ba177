"""Runs the worker that samples a video, within limits, and reads the frames that it sends.

What the worker sends is not trusted: a file that takes it over can send wrong pictures, but nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from subprocess import TimeoutExpired
from tempfile import TemporaryFile
from threading import Event, Timer
from typing import IO, Any, Self, TypeVar

from PIL import Image

from ternvl.errors import UnavailableError, VideoError
from ternvl.limits import VideoLimits
from ternvl.prompt.images import to_rgb
from ternvl.prompt.parts import Sampling
from ternvl.prompt.video.clips import Job
from ternvl.workers.start import start
from ternvl.workers.threads import started

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

_CODES = {"not_installed": "video_not_supported", "unsupported": "unsupported_video", "codec": "unsupported_video"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

T = TypeVar("T")


def sample(
    source: bytes | Path, sampling: Sampling, limits: VideoLimits, name: str, cut: Callable[[Image.Image], T]
) -> list[T]:
    """Return what `cut` makes of each sampled frame of a video, an RGB image. Only one frame is held at a time.

    `sampling` has a number of frames. `name` is what errors call the video. Raises VideoError for a video that is over
    a limit, cannot be decoded or takes too long, and RuntimeError if the worker fails for a reason of its own.
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
    with _open(source, name) as file, _Worker(file, job, name) as worker:
        indices = worker.indices()
        made = {index: cut(worker.frame()) for index in sorted(set(indices))}
    return [made[index] for index in indices]


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


class _Refusal(Exception):
    """A line in which the worker says why it refuses the video."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.values = values


class _Worker:
    """The process that samples one video. It is killed when its time is over, and at the end of the `with` block."""

    def __init__(self, file: IO[bytes], job: Job, name: str) -> None:
        self._job, self._name = job, name
        self._process = start("ternvl.prompt.video.worker", job, file)
        self._is_late = Event()
        try:
            self._timer = started(Timer(job.max_seconds, self._end))
        except UnavailableError:
            with self._process:
                self._process.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._process.kill()
        with self._process:
            pass  # closes its output and waits for it

    def _end(self) -> None:
        self._is_late.set()
        self._process.kill()

    def indices(self) -> list[int]:
        """Return the sampled frames, in their order. Raises what `sample` raises."""
        with self._explained():
            indices = self._line()["indices"]
            if not 1 <= len(indices) <= self._job.num_frames or not all(isinstance(index, int) for index in indices):
                raise ValueError("not a list of frames")
            return list(indices)

    def frame(self) -> Image.Image:
        """Return the next different frame. Raises what `sample` raises."""
        with self._explained():
            header = self._line()
            size, mode = (int(header["width"]), int(header["height"])), str(header["mode"])
            if min(size) < 1 or size[0] * size[1] > self._job.max_pixels or mode not in ("RGB", "RGBA"):
                raise ValueError("not a frame")
            turn = _TURNS.get(int(header["rotation"]) % 360)
            frame = Image.frombytes(mode, size, self._output.read(size[0] * size[1] * len(mode)))
        frame = to_rgb(frame, self._name)
        return frame if turn is None else frame.transpose(turn)

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _line(self) -> dict[str, Any]:
        values = json.loads(self._output.readline(10_000))
        if "refused" in values:
            raise _Refusal(values)
        return dict(values)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn refusals, and output that is not as agreed, into errors for the user."""
        try:
            yield
        except _Refusal as refusal:
            raise self._error(refusal.values) from None
        except (ValueError, KeyError, TypeError):
            if self._is_late.is_set():
                took = f"it took longer than {self._job.max_seconds:g} seconds"
                raise VideoError(f"{self._name} could not be decoded: {took}.") from None
            if (status := self._status()) > 0:  # not a signal, by which a decoder crashes
                raise RuntimeError(f"The process that decodes videos ended with status {status}.") from None
            raise self._error({"refused": "damaged"}) from None

    def _status(self) -> int:
        """Return the exit status of a process that has closed its output; 0 if it still runs."""
        try:
            return self._process.wait(1)
        except TimeoutExpired:
            return 0

    def _error(self, values: dict[str, Any]) -> VideoError:
        kind = str(values["refused"])
        message = f"{self._name} {REASONS.get(kind, REASONS['damaged']).format_map(asdict(self._job) | values)}."
        if kind in ("pixels", "frames"):
            return VideoError(message, code="video_too_large", too_large=True)
        return VideoError(message, code=_CODES.get(kind))
