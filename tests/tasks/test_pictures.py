"""Images as users give them, and frames of videos."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ternvl.errors import ConfigError, ImageError, RequestError, VideoError
from ternvl.limits import ImageLimits
from ternvl.prompt.video.clips import frame_indices
from ternvl.tasks import Tasks
from ternvl.tasks.frames import sample_frames
from ternvl.tasks.pictures import open_picture
from tests.tasks.scripted import ScriptedBackend

LIMITS = ImageLimits(allow_private_addresses=True)


def noise(width: int = 20, height: int = 10) -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    noise().save(buffer, kind, **options)
    return buffer.getvalue()


def sent(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_every_way_to_give_an_image(kind: str, tmp_path: Path, web: str) -> None:
    data = encoded(kind)
    (tmp_path / "image").write_bytes(data)
    data_uri = f"data:image/x;base64,{base64.b64encode(data).decode()}"
    sources = [data, tmp_path / "image", str(tmp_path / "image"), f"{web}/image", data_uri]
    wanted = Image.open(io.BytesIO(data)).convert("RGB")
    for source in sources:
        opened = open_picture(source, LIMITS)
        assert opened.size == (20, 10)
        assert opened.image.tobytes() == wanted.tobytes()
        assert sent(opened.url).tobytes() == wanted.tobytes()
        if kind in ("PNG", "JPEG", "GIF"):
            assert opened.url == f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    opened = open_picture(wanted, LIMITS)
    assert opened.image.tobytes() == sent(opened.url).tobytes() == wanted.tobytes()


def test_transparency_and_orientation_are_as_the_server_sees_them() -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    assert open_picture(image, LIMITS).image.getpixel((0, 0)) == (255, 255, 255)
    turned = noise()
    turned.getexif()[0x0112] = 8
    opened = open_picture(turned, LIMITS)
    assert opened.size == (10, 20)
    assert sent(opened.url).size == (10, 20)


def test_images_that_are_refused(tmp_path: Path, web: str) -> None:
    (tmp_path / "text").write_text("no image")
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[:-40])
    for source in (
        tmp_path / "none",
        tmp_path,
        "x\0y",
        tmp_path / "text",
        tmp_path / "cut.png",
        b"",
        b"GIF89a",
        f"{web}/none",
    ):
        with pytest.raises(ImageError):
            open_picture(source, LIMITS)
    for source in (3, None, ["a.png"]):
        with pytest.raises(RequestError, match="path, a URL, bytes or a PIL image"):
            open_picture(source, LIMITS)  # type: ignore[arg-type]


def test_limits() -> None:
    for limits in (ImageLimits(max_image_bytes=100), ImageLimits(max_image_pixels=100)):
        with pytest.raises(ImageError) as raised:
            Tasks(ScriptedBackend("A car."), limits=limits).caption(encoded("PNG"))
        assert raised.value.too_large
    with pytest.raises(ImageError, match="could not be fetched"):
        Tasks(ScriptedBackend("A car.")).caption("http://127.0.0.1:9/image.png")
    with pytest.raises(ConfigError):
        Tasks(ScriptedBackend(""), limits=ImageLimits(max_image_bytes=0))


def test_a_path_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "image.png").write_bytes(encoded("PNG"))
    assert open_picture("~/image.png", LIMITS).size == (20, 10)


def test_frame_indices_are_the_official_ones() -> None:
    def official(total: int, count: int) -> list[int]:  # get_index of evaluate_mvbench.py, without a bound
        seg_size = float(total - 1 - 0) / count
        return [int(0 + (seg_size / 2) + np.round(seg_size * index)) for index in range(count)]

    for total in range(1, 200):
        for count in (1, 2, 3, 7, 8, 16, 64):
            assert frame_indices(count, total) == official(total, count)
            assert all(0 <= index < total for index in frame_indices(count, total))


def gray(level: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (level, level, level))


@pytest.fixture(scope="module")
def gif(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.gif"
    frames = [gray(8 * index) for index in range(20)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def levels(path: Path, count: int) -> list[int]:
    return [frame.getpixel((8, 8))[0] for frame in sample_frames(path, count)]  # type: ignore[index]


def test_frames_of_a_gif(gif: Path) -> None:
    assert levels(gif, 8) == [8 * index for index in frame_indices(8, 20)]
    assert levels(gif, 1) == [72]
    assert len(levels(gif, 64)) == 64


def test_frames_of_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        for index in range(20):
            for packet in stream.encode(av.VideoFrame.from_image(gray(12 * index))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    found = levels(path, 8)
    assert all(abs(level - 12 * index) <= 4 for level, index in zip(found, frame_indices(8, 20), strict=True)), found


def test_frames_are_sent_as_images_with_labels(gif: Path) -> None:
    backend = ScriptedBackend("It grows lighter.")
    assert Tasks(backend).video(gif, "What happens?", frames=2) == "It grows lighter."
    (request,) = backend.requests
    assert [part for part in request.parts if isinstance(part, str)] == [
        "Frame-1: ", "\n", "Frame-2: ", "\n", "What happens?",
    ]  # fmt: skip
    assert request.max_tiles == 1


def test_videos_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.gif").write_bytes(b"GIF89a")
    refused = {
        "none.mp4": "cannot be read: No such file",
        "text.mp4": "is not a video in a supported format",
        "empty.mp4": "is not a video",
        "cut.gif": "could not be decoded",
    }
    for name, reason in refused.items():
        with pytest.raises(VideoError, match=f"The video '.*{name}' {reason}"):
            sample_frames(tmp_path / name, 2)
    for count in (0, -1, 129, True, 2.0):
        with pytest.raises(RequestError, match="frames is"):
            sample_frames(tmp_path / "cut.gif", count)  # type: ignore[arg-type]
