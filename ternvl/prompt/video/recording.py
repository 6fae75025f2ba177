"""Recordings, which FFmpeg reads, by way of PyAV: MP4, QuickTime, Matroska, WebM and AVI files."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from ternvl.prompt.video.clips import Job, Pixels, RefusedError, check_frames, check_pixels

DECODERS = "h264 hevc av1 libdav1d vp8 vp9 libvpx libvpx-vp9 mpeg4 mpeg1video mpeg2video h263 mjpeg msmpeg4 msmpeg4v2"
"""The decoders of FFmpeg that may run, by name: those of films, phones, cameras, browsers and older AVI files."""


class UntimedError(Exception):
    """The times of packets and frames do not tell which frame is which."""


class Recording:
    """A file that FFmpeg reads. Its packets are scanned, and frames are decoded from the key frame before a wanted one.

    Frames are found by their times. Where times do not tell which frame is which, all are decoded and counted.
    """

    def __init__(self, file: BinaryIO, demuxer: str, job: Job) -> None:
        self._file, self._demuxer, self._job = file, demuxer, job
        self._start()
        self._scan()

    def _start(self) -> None:
        """Open the file from its beginning."""
        try:
            import av
        except ImportError:
            raise RefusedError("not_installed") from None
        self._file.seek(0)
        self._container = av.open(
            self._file,
            format=self._demuxer,
            options={"codec_whitelist": DECODERS.replace(" ", ","), **self._guard()},
            metadata_errors="replace",
            io_open=_open_nothing,
        )
        pictures = av.stream.Disposition.attached_pic
        streams = [each for each in self._container.streams.video if not each.disposition & pictures]
        if not streams:
            raise RefusedError("no_video")
        self._stream = streams[0]
        self._prepare(self._stream.codec_context)

    def _prepare(self, context: Any) -> None:
        if context is None or context.name not in DECODERS.split():
            raise RefusedError("codec", codec="unknown" if context is None else context.name)
        check_pixels(context.width, context.height, self._job)
        context.options = self._guard()
        context.thread_type, context.thread_count = "AUTO", 2

    def _guard(self) -> dict[str, str]:
        """Return the options that keep a decoder from allocating huge frames, which it rounds up to its own blocks."""
        return {"max_pixels": str(2 * self._job.max_pixels + 65_536)}

    def _scan(self) -> None:
        """Note the times of all frames and of the key frames. Refuse a file that ends before its time."""
        self._times: list[int] = []
        self._keys: list[tuple[int, int]] = []
        begin, end = math.inf, -math.inf
        seconds = [float(stream.time_base or 0) for stream in self._container.streams]
        for packet in self._container.demux():
            if not packet.size:
                continue
            if packet.is_corrupt:
                raise RefusedError("truncated")
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None:
                begin = min(begin, time * seconds[packet.stream_index])
                end = max(end, (time + (packet.duration or 0)) * seconds[packet.stream_index])
            if packet.stream_index == self._stream.index and not packet.is_discard:
                self._note(packet)
        if not self._times:
            raise RefusedError("no_video")
        if end - begin < 0.9 * (self._container.duration or 0) / 1_000_000 - 1:
            raise RefusedError("truncated")
        self.num_frames = len(self._times)
        # The packets of an AVI file have no times of their own, and FFmpeg invents wrong ones for some codecs.
        has_times = self._demuxer != "avi" and None not in self._times
        self._is_timed = has_times and len(set(self._times)) == self.num_frames
        if self._is_timed:
            self._times.sort()
            self._keys.sort()

    def _note(self, packet: Any) -> None:
        self._times.append(packet.pts)
        check_frames(len(self._times), self._job)
        if packet.is_keyframe and packet.pts is not None:
            self._keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))

    def seconds(self) -> float:
        """Return the time from the first frame to the end of the last one, which is shown as long as others."""
        if self._is_timed and self.num_frames > 1:
            span = (self._times[-1] - self._times[0]) * self._stream.time_base
            return float(span * self.num_frames / (self.num_frames - 1))
        return float(self.num_frames / (self._stream.average_rate or 25))

    def frames(self, indices: Sequence[int]) -> Iterator[Pixels]:
        """Yield frames with the rotation that the file asks for."""
        num_found = 0
        try:
            for frame in self._timed([self._times[index] for index in indices]):
                yield self._pixels(frame)
                num_found += 1
        except UntimedError:
            self._start()
            for frame in self._counted(indices[num_found:]):
                yield self._pixels(frame)

    def _timed(self, times: Sequence[int]) -> Iterator[Any]:
        """Yield the frames at some times. Raises UntimedError if they cannot be found by time."""
        frame, frames = None, iter(())
        for time in times:
            key = self._key_before(time)
            if frame is None or frame.pts < key[0]:
                frames = self._seek(key)
                frame = next(frames, None)
            while _time(frame) < time:
                frame = next(frames, None)
            if _time(frame) != time:  # the file does not seek as it says, or a packet has no frame
                raise UntimedError
            yield frame

    def _key_before(self, time: int) -> tuple[int, int]:
        """Return the last key frame that is not shown after a time: its time, and the time that it is sought by."""
        position = bisect_right(self._keys, (time, sys.maxsize))
        if not self._is_timed or not position:
            raise UntimedError
        return self._keys[position - 1]

    def _seek(self, key: tuple[int, int]) -> Iterator[Any]:
        self._container.seek(key[1], stream=self._stream)
        return iter(self._container.decode(self._stream))

    def _counted(self, indices: Sequence[int]) -> Iterator[Any]:
        """Yield frames by counting from the first. The last one stands for those that are missing at the end."""
        frames = self._container.decode(self._stream)
        frame, number = next(frames, None), 0
        if frame is None:
            raise RefusedError("damaged")
        for index in indices:
            while number < index and (following := next(frames, None)) is not None:
                frame, number = following, number + 1
            yield frame

    def _pixels(self, frame: Any) -> Pixels:
        check_pixels(frame.width, frame.height, self._job)
        plane = frame.reformat(format="rgb24").planes[0]
        width, data = 3 * frame.width, memoryview(plane)
        rows = [data[start : start + width] for start in range(0, frame.height * plane.line_size, plane.line_size)]
        return Pixels(frame.width, frame.height, "RGB", int(frame.rotation), b"".join(rows))


def _time(frame: Any) -> int:
    if frame is None or frame.pts is None:
        raise UntimedError
    return int(frame.pts)


def _open_nothing(*_: object) -> None:
    raise RefusedError("damaged")  # a file that refers to others
