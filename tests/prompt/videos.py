"""Videos whose frames say their own numbers, and the official code for sampling them."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import av
import numpy as np
from PIL import Image

SIZE = (128, 48)
_BITS = 8


def picture(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A frame: bars that are white where the number has a bit."""
    bars = np.array([255 * (number >> bit & 1) for bit in range(_BITS)], np.uint8).repeat(size[0] // _BITS)
    return Image.fromarray(np.broadcast_to(bars[None, :, None], (size[1], size[0], 3)).copy())


def number_of(frame: Image.Image) -> int:
    """The number that a frame shows, whatever its size."""
    row = np.asarray(frame.convert("L"), np.float64).mean(axis=0)
    return sum(1 << bit for bit in range(_BITS) if row[int((bit + 0.5) * len(row) / _BITS)] > 127)


def video(
    count: int,
    container: str = "mp4",
    codec: str = "libx264",
    *,
    rate: int = 30,
    size: tuple[int, int] = SIZE,
    rotation: int = 0,
    **options: str,
) -> bytes:
    """An encoded video of the frames 0 to `count` - 1."""
    file = BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            for packet in stream.encode(av.VideoFrame.from_image(picture(number, size))):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return file.getvalue()


def sound() -> bytes:
    """An MP4 file without a picture."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode()]:
            output.mux(packet)
    return file.getvalue()


def animation(frames: list[Image.Image], kind: str = "GIF", **options: Any) -> bytes:
    """The frames as a GIF or WebP file, a tenth of a second each."""
    file = BytesIO()
    lossless = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100, **lossless, **options)
    return file.getvalue()


def uri(data: bytes, mime: str = "video/mp4") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def official_indices(num_segments: int, num_frames: int, fps: float = 30.0) -> list[int]:
    """`get_index` of InternVL3's model card, as `load_video` calls it for a whole video."""
    start, end, first_idx, max_frame = -100_000, 100_000, 0, num_frames - 1
    start_idx = max(first_idx, round(start * fps))
    end_idx = min(round(end * fps), max_frame)
    seg_size = float(end_idx - start_idx) / num_segments
    frame_indices = np.array(
        [int(start_idx + (seg_size / 2) + np.round(seg_size * idx)) for idx in range(num_segments)]
    )
    return [int(index) for index in frame_indices]
