"""Samples the frames of a video in a process of its own, so that a hostile file cannot crash or exhaust the caller.

`process.py` runs this module with the file as standard input and the fields of a `Job` as JSON. The answer is a line of
JSON, `{"indices": [...]}`, and for each different index, in ascending order, a line with the fields of `Pixels` and its
bytes. A line `{"refused": kind, ...}` is the end. The module imports little, so that the process starts in a fifth of a
second.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, BinaryIO

from ternvl.prompt.video.clips import Clip, Job, Pixels, RefusedError, frame_indices
from ternvl.workers.confine import confine

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""The first boxes of MP4 and QuickTime files."""


def sample(file: BinaryIO, job: Job) -> Iterator[list[int] | Pixels]:
    """Yield the indices of the frames of a video, and then each different frame. Raises RefusedError."""
    try:
        clip = _open(file, job)
        indices = frame_indices(_wanted(clip, job), clip.num_frames)
        yield indices
        yield from clip.frames(sorted(set(indices)))
    except RefusedError:
        raise
    except MemoryError as error:
        raise RefusedError("memory") from error
    except Exception as error:  # decoders raise exceptions of any type
        raise RefusedError("damaged") from error


def _wanted(clip: Clip, job: Job) -> int:
    if job.fps is None:
        return job.num_frames
    return max(1, min(job.num_frames, math.floor(clip.seconds() * job.fps)))


def _open(file: BinaryIO, job: Job) -> Clip:
    """Choose the reader by the first bytes, and never let FFmpeg guess: it also knows formats that open other files."""
    head = file.read(16)
    file.seek(0)
    if _is_animation(head):
        from ternvl.prompt.video.animation import Animation

        return Animation(file, job)
    if (demuxer := _demuxer(head)) is None:
        raise RefusedError("unsupported")
    from ternvl.prompt.video.recording import Recording

    return Recording(file, demuxer, job)


def _is_animation(head: bytes) -> bool:
    return head[:6] in (b"GIF87a", b"GIF89a") or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _demuxer(head: bytes) -> str | None:
    if head[4:8] in _BOXES:
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


def prepare(file: BinaryIO) -> None:
    """Import what reads the file, and what that imports late, before no file can be opened any more."""
    head = file.read(16)
    file.seek(0)
    if _is_animation(head):
        import_module("ternvl.prompt.video.animation")
        import_module("PIL.ImagePalette")
    elif _demuxer(head) is not None:
        import_module("ternvl.prompt.video.recording")
        try:
            _import_all("av")
        except ImportError:
            sys.modules["av"] = None  # type: ignore[assignment]  # `Recording` says so, and does not look for it again


def _import_all(package: str) -> None:
    """Import all modules of a package."""
    for module in walk_packages(import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            import_module(module.name)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def main() -> None:
    """Answer the job of the command line."""
    job = Job(**json.loads(sys.argv[1]))
    prepare(sys.stdin.buffer)
    confine(job.max_memory, cpu_seconds=math.ceil(job.max_seconds) * 2 + 1)  # two threads; the caller's clock is first
    out = sys.stdout.buffer
    try:
        for each in sample(sys.stdin.buffer, job):
            if isinstance(each, Pixels):
                out.write(_line({**asdict(each), "data": len(each.data)}))
                out.write(each.data)
            else:
                out.write(_line({"indices": each}))
    except RefusedError as error:
        out.write(_line({"refused": error.kind, **error.values}))
    out.flush()


if __name__ == "__main__":
    main()
