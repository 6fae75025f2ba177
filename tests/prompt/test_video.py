"""Frames of videos: which are sampled, their pixels, and what is refused."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ternvl.errors import VideoError
from ternvl.limits import VideoLimits
from ternvl.prompt.parts import Sampling
from ternvl.prompt.video import process, worker
from ternvl.prompt.video.clips import Job, Pixels, RefusedError, frame_indices
from ternvl.prompt.video.recording import Recording
from ternvl.workers import start as processes
from tests.prompt.videos import animation, number_of, official_indices, picture, sound, video

LIMITS = VideoLimits()
JOB = Job(8, None, 1000, 10**6, 2**31, 60.0)
FAST = {"deadline": "realtime", "cpu-used": "8"}
HEAD = 1200


def frames_of(data: bytes, **job: Any) -> list[Image.Image]:
    """The sampled frames, decoded in this process."""
    fields = {name: getattr(JOB, name) for name in Job.__slots__} | job
    indices, *pixels = worker.sample(BytesIO(data), Job(**fields))
    assert isinstance(indices, list)
    shown: dict[int, Image.Image] = {}
    for index, each in zip(sorted(set(indices)), pixels, strict=True):
        assert isinstance(each, Pixels)
        shown[index] = Image.frombytes(each.mode, (each.width, each.height), each.data)
    return [shown[index] for index in indices]


def numbers(data: bytes, **job: Any) -> list[int]:
    return [number_of(frame) for frame in frames_of(data, **job)]


def refusal(data: bytes, **job: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        frames_of(data, **job)
    assert caught.value.kind in process.REASONS
    return caught.value.kind


@pytest.mark.parametrize("total", [1, 2, 3, 7, 8, 31, 200, 1801])
def test_the_sampled_frames_are_those_of_the_official_code(total: int) -> None:
    for count in (1, 2, 5, 8, 16, 32, 64):
        assert frame_indices(count, total) == official_indices(count, total)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "libx264", {}),
        ("mp4", "libx264", {"g": "12", "bf": "3"}),
        ("mp4", "libx264", {"x264-params": "open-gop=1:keyint=20:bframes=3:scenecut=0"}),
        ("mov", "libx264", {"g": "30"}),
        ("mp4", "mpeg4", {"g": "15", "bf": "2"}),
        ("webm", "libvpx-vp9", {"g": "30", **FAST}),
        ("webm", "libvpx", {"g": "30", **FAST}),
        ("matroska", "libx264", {"g": "25"}),
        ("avi", "mpeg4", {"bf": "2"}),
        ("avi", "libx264", {"g": "20"}),
        ("avi", "mjpeg", {}),
    ],
)
def test_frames_of_every_container_are_the_sampled_ones(container: str, codec: str, options: dict[str, str]) -> None:
    data = video(90, container, codec, **options)
    for count in (1, 8, 32):
        assert numbers(data, num_frames=count) == official_indices(count, 90)


def test_a_short_video_repeats_frames_as_the_official_code_does() -> None:
    assert numbers(video(3)) == official_indices(8, 3)
    assert numbers(video(1), num_frames=4) == [0, 0, 0, 0]


def test_the_pixels_are_those_of_the_frames() -> None:
    shown = frames_of(video(40, crf="10"))
    for frame, index in zip(shown, official_indices(8, 40), strict=True):
        difference = np.asarray(frame, np.int16) - np.asarray(picture(index), np.int16)
        assert frame.size == picture(0).size
        assert np.abs(difference).mean() < 4


def test_only_the_frames_after_a_key_frame_are_decoded() -> None:
    class Counting(Recording):
        num_decoded = 0

        def _seek(self, key: tuple[int, int]) -> Any:
            for frame in super()._seek(key):
                self.num_decoded += 1
                yield frame

    clip = Counting(BytesIO(video(250, g="10")), "mov", JOB)
    assert len(list(clip.frames(frame_indices(4, 250)))) == 4
    assert clip.num_decoded < 60


def test_a_frame_rate_gives_the_number_of_frames() -> None:
    two_seconds = video(60)
    for fps, count in ((1.0, 2), (2.0, 4), (0.01, 1), (1000.0, 8)):
        assert numbers(two_seconds, fps=fps) == official_indices(count, 60)
    assert numbers(video(30, "avi", "mpeg4", rate=10), fps=1.0) == official_indices(3, 30)
    assert numbers(animation([picture(k) for k in range(20)]), fps=2.0) == official_indices(4, 20)


def test_a_rotated_video_is_turned() -> None:
    upright = process.sample(video(2, rotation=90, crf="10"), Sampling(1), LIMITS, "video", lambda frame: frame)[0]
    turned = picture(0).size[::-1]
    assert upright.size == turned
    shown = process.sample(video(9, rotation=90, crf="10"), Sampling(1), LIMITS, "video", lambda frame: frame)[0]
    assert number_of(shown.transpose(Image.Transpose.ROTATE_270)) == official_indices(1, 9)[0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_need_no_further_library(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    data = animation([picture(number) for number in range(50)], kind)
    for count in (1, 8, 32):
        assert numbers(data, num_frames=count) == official_indices(count, 50)
    assert refusal(video(2)) == "not_installed"


def test_transparency_is_put_over_white() -> None:
    clear = Image.new("RGBA", (128, 48), (0, 0, 0, 0))
    solid = Image.new("RGBA", (128, 48), (255, 0, 0, 255))
    shown = process.sample(animation([clear, solid], disposal=2), Sampling(2), LIMITS, "v", lambda frame: frame)
    assert [frame.mode for frame in shown] == ["RGB", "RGB"]
    assert shown[0].getpixel((5, 5)) == (255, 255, 255)


def hundred_million_frames() -> bytes:
    """A small MP4 file whose tables say that it has 10**8 frames of one byte."""
    data = bytearray(video(5))
    for box, offset, values in (
        (b"stsz", 8, (1, 10**8)),
        (b"stsc", 12, (1, 10**8, 1)),
        (b"stts", 12, (10**8, 512)),
    ):
        start = data.index(box) + offset
        data[start : start + 4 * len(values)] = b"".join(value.to_bytes(4, "big") for value in values)
    return bytes(data)


def test_hostile_files_are_refused() -> None:
    mp4 = video(30)
    assert refusal(b"hello" * 20) == refusal(b"#EXTM3U\nfile:///etc/passwd\n") == "unsupported"
    assert refusal(b"ffconcat version 1.0\nfile /etc/passwd\n") == "unsupported"
    assert refusal(mp4[: len(mp4) // 2]) == "damaged"
    assert refusal(mp4[:40]) == refusal(mp4[4:8].join([b"\0\0\0\x08", b""])) == "damaged"
    assert refusal(sound()) == "no_video"
    assert refusal(mp4, max_scanned=29) == "frames"
    assert refusal(mp4, max_pixels=128 * 48 - 1) == "pixels"
    assert len(numbers(mp4, max_scanned=30, max_pixels=128 * 48)) == 8
    assert refusal(video(3, "avi", "ffv1")) == "codec"
    gif = animation([picture(number) for number in range(30)])
    assert refusal(gif, max_scanned=29) == "frames"
    assert refusal(gif, max_pixels=128 * 48 - 1) == "pixels"
    assert refusal(gif[:300]) == "damaged"


@pytest.mark.parametrize(("container", "codec"), [("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("matroska", "libx264")])
def test_files_that_end_too_early_are_refused(container: str, codec: str) -> None:
    data = video(120, container, codec, **(FAST if codec == "libvpx-vp9" else {}))
    assert refusal(data[: len(data) // 2]) == "truncated"


def test_damaged_bytes_never_do_more_than_refuse() -> None:
    rng = np.random.default_rng(0)
    originals = [video(20), video(20, "webm", "libvpx-vp9", **FAST), video(20, "avi", "mpeg4")]
    ended = set()
    for number in range(60):
        data = bytearray(originals[number % 3])
        for place in rng.integers(0, min(len(data), HEAD), 8):
            data[place] = rng.integers(256)
        try:
            ended.add(len(numbers(bytes(data))))
        except RefusedError as error:
            ended.add(error.kind)
    assert ended <= {8, *process.REASONS}
    assert len(ended) > 2


def sample(data: bytes | Path, count: int = 8, **limits: Any) -> list[int]:
    return process.sample(data, Sampling(count), VideoLimits(**limits), "messages[0] video 1", number_of)


def error_of(data: bytes | Path, **limits: Any) -> VideoError:
    with pytest.raises(VideoError, match=r"^messages\[0\] video 1 .*\.$") as caught:
        sample(data, **limits)
    return caught.value


def test_the_process_returns_what_is_made_of_each_frame(tmp_path: Path) -> None:
    data = video(100)
    path = tmp_path / "a b.mp4"
    path.write_bytes(data)
    assert sample(data) == sample(path) == official_indices(8, 100)
    assert sample(video(2), 5) == official_indices(5, 2)


def test_the_process_says_why_a_video_is_refused(tmp_path: Path) -> None:
    error = error_of(sound())
    assert (error.code, error.too_large) == ("invalid_video", False)
    assert "holds no video" in str(error)
    error = error_of(video(9), max_video_pixels=128 * 48 - 1)
    assert (error.code, error.too_large) == ("video_too_large", True)
    assert "128 x 48 pixels, but a frame may have at most 6143 in all" in str(error)
    assert "more than 8 frames" in str(error_of(video(9), max_scanned_frames=8))
    assert error_of(b"x" * 99).code == "unsupported_video"
    assert "its codec ffv1 is not supported" in str(error_of(video(3, "avi", "ffv1")))
    assert "is empty" in str(error_of(b""))
    assert "No such file" in str(error_of(tmp_path / "none.mp4"))


def test_a_file_that_claims_to_be_enormous_is_refused_within_bounds() -> None:
    assert "could not be decoded" in str(error_of(hundred_million_frames(), video_decode_timeout=20.0))


def test_decoding_has_a_time_limit() -> None:
    error = error_of(video(9), video_decode_timeout=0.001)
    assert "took longer than 0.001 seconds" in str(error)


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Run some lines of Python instead of the worker."""
    path = tmp_path / "worker.py"
    path.write_text("\n".join(["import json, os, sys", *lines]))

    def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([command[0], str(path)], **options)

    monkeypatch.setattr(processes, "Popen", popen)


@pytest.mark.parametrize(
    "lines",
    [
        ["os.kill(os.getpid(), 9)"],
        ["print('not json')"],
        ["print('[]')"],
        ["print(json.dumps({'indices': list(range(9))}))"],
        ["print(json.dumps({'indices': ['0']}))"],
        ["print(json.dumps({'indices': [0]}))", "print(json.dumps({'width': 10**6, 'height': 10**6, 'mode': 'RGB'}))"],
        ["print(json.dumps({'indices': [0]}))", "print(json.dumps({'width': 2, 'height': 2, 'mode': 'F'}))"],
        [
            "print(json.dumps({'indices': [0]}))",
            "print(json.dumps({'width': 2, 'height': 2, 'mode': 'RGB', 'rotation': 0}) + '\\nabc')",
        ],
    ],
)
def test_a_worker_that_breaks_is_a_damaged_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    script(tmp_path, monkeypatch, *lines)
    assert "its data is damaged" in str(error_of(b"\0" * 99))


def test_a_worker_that_cannot_work_is_not_the_videos_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, monkeypatch, "sys.exit(3)")
    with pytest.raises(RuntimeError, match="ended with status 3"):
        sample(b"\0" * 99)


def test_an_unknown_word_of_the_worker_is_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, monkeypatch, "print(json.dumps({'refused': 'secret'}))")
    assert "secret" not in str(error_of(b"\0" * 99))


@pytest.mark.parametrize("kind", ["MP4", "GIF", "WEBP"])
def test_the_worker_can_open_neither_files_nor_connections(kind: str, tmp_path: Path) -> None:
    """The worker's own `main`, with a reader that tries to, after its imports."""
    path = tmp_path / "video"
    path.write_bytes(video(9) if kind == "MP4" else animation([picture(number) for number in range(9)], kind))
    code = (
        "import dataclasses, os, socket, sys\nfrom ternvl.prompt.video import worker\n"
        "def sample(file, job, read=worker.sample):\n"
        "    for use in (socket.socket, os.pipe, lambda: open('/etc/passwd'), lambda: open('new', 'w')):\n"
        "        try:\n            use()\n            print('opened', file=sys.stderr)\n"
        "        except OSError as error:\n            print(error.errno, file=sys.stderr)\n"
        "    return read(file, job)\n"
        "worker.sample = sample\nworker.main()"
    )
    job = json.dumps(asdict(JOB))
    with path.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code, job], stdin=file, capture_output=True, timeout=60, check=True
        )
    assert done.stderr.split() == [str(errno.EMFILE).encode()] * 4
    assert b"indices" in done.stdout.splitlines()[0]
