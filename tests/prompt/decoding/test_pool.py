"""Images that are decoded in processes: the same pixels, and files that crash, exhaust or hold up one of them."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from ternvl.errors import ImageError, UnavailableError
from ternvl.limits import ImageLimits
from ternvl.prompt.decoding import pool as pools
from ternvl.prompt.decoding.pool import DecoderPool
from ternvl.prompt.images import Tiles, decode_tiles
from ternvl.prompt.tiling import TileSettings
from ternvl.workers import start as starting
from ternvl.workers import worker as workers
from ternvl.workers.start import start
from tests.waiting import eventually

LIMITS = ImageLimits()
SETTINGS = TileSettings(1, 6, thumbnail=True, side=56)
NAME = "messages[0].content[1].image_url.url"


@contextmanager
def opened(size: int = 1, limits: ImageLimits = LIMITS, max_seconds: float = 600.0) -> Iterator[DecoderPool]:
    pool = DecoderPool(size, limits, max_seconds)
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with opened(2) as pool:
        yield pool


def decode(pool: DecoderPool, data: bytes, client: str = "a") -> Tiles:
    return pool.decode(data, SETTINGS, NAME, client, request=client)


def refusal(pool: DecoderPool, data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(pool, data)
    assert str(caught.value).startswith(NAME)
    return caught.value


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (90, 130, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def slow_png() -> bytes:
    """A PNG of so many empty chunks that reading them takes many seconds."""
    empty = struct.pack(">I", 0) + b"aaAa" + struct.pack(">I", zlib.crc32(b"aaAa"))
    png = encoded(noise(), "PNG")
    return png[:33] + 1_500_000 * empty + png[33:]


SAMPLES = [
    *[(mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[(mode, "TIFF", {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "F", "I", "I;16")],
    *[("RGB", "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")],
    *[(mode, "JPEG", {}) for mode in ("L", "RGB", "CMYK")],
    ("RGB", "JPEG", {"progressive": True, "comment": "ä"}),
    ("RGBA", "WEBP", {}),
    ("P", "GIF", {}),
    ("RGB", "BMP", {}),
    ("RGB", "MPO", {}),
    *([("RGBA", "AVIF", {})] if features.check("avif") else []),
]


def test_every_format_has_the_pixels_that_it_has_in_this_process(pool: DecoderPool) -> None:
    for mode, image_format, options in SAMPLES:
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "ä"
        more = {} if image_format in ("GIF", "BMP", "TIFF") else {"exif": exif}
        data = encoded(noise(mode), image_format, **options, **more)
        here, there = decode_tiles(data, SETTINGS, LIMITS, NAME), decode(pool, data)
        assert len(here) == len(there) > 1
        np.testing.assert_array_equal(np.stack(here), np.stack(there), err_msg=f"{mode} {image_format}")


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "invalid_image"), (b"no image", "unsupported_image"), (encoded(noise(), "PNG")[:900], "invalid_image")],
)
def test_errors_are_those_of_this_process(pool: DecoderPool, data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_tiles(data, SETTINGS, LIMITS, NAME)
    error = refusal(pool, data)
    assert (str(error), error.code, error.too_large) == (str(caught.value), code, False)


def test_limits_of_images_hold() -> None:
    with opened(limits=ImageLimits(max_image_pixels=1_000, max_image_bytes=500_000)) as pool:
        assert refusal(pool, encoded(noise(), "PNG")).code == "image_too_large"
        assert "500001 bytes" in str(refusal(pool, bytes(500_001)))


def test_an_image_that_takes_too_long_is_given_up() -> None:
    with opened(max_seconds=1.0) as pool:
        error = refusal(pool, slow_png())
        assert "it took longer than 1 seconds, the most that an image may take" in str(error)
        assert (error.code, error.too_large) == ("invalid_image", False)
        assert decode(pool, encoded(noise(), "PNG"))


def test_slow_images_of_one_client_do_not_hold_up_another() -> None:
    slow = slow_png()
    with ThreadPoolExecutor(3) as threads, opened(2) as pool:
        waiting = [threads.submit(refusal, pool, slow) for _ in range(2)]
        for _ in range(5):
            assert decode(pool, encoded(noise(), "PNG"), client="b")
        assert not any(each.done() for each in waiting)


def test_slow_images_of_one_request_do_not_hold_up_other_requests_of_its_client() -> None:
    slow, quick = slow_png(), encoded(noise(), "PNG")
    with ThreadPoolExecutor(3) as threads, opened(4) as pool:
        waiting = [threads.submit(refusal, pool, slow) for _ in range(3)]
        eventually(lambda: sum(worker["jobs"] for worker in pool.state["workers"]) == 2)
        assert [worker["busy"] for worker in pool.state["workers"]] == [True, True]
        eventually(lambda: pool.state["waiting"] == 1)
        for _ in range(3):
            assert pool.decode(quick, SETTINGS, NAME, "a", "another request")
        assert sorted((worker["busy"], worker["jobs"]) for worker in pool.state["workers"])[0] == (False, 3)
        assert {worker["pid"] for worker in pool.state["workers"]} == {each._process.pid for each in pool.workers._all}
        assert not any(each.done() for each in waiting)


def test_a_worker_that_crashes_costs_one_image_and_is_replaced() -> None:
    with ThreadPoolExecutor(1) as threads, opened() as pool:
        waiting = threads.submit(refusal, pool, slow_png())
        eventually(lambda: any(worker._num_jobs for worker in pool.workers._all))
        (busy,) = pool.workers._all
        os.kill(busy._process.pid, signal.SIGSEGV)
        assert "its data crashes the decoder" in str(waiting.result(60))
        assert busy not in pool.workers._all
        assert decode(pool, encoded(noise(), "PNG"))


def test_an_idle_worker_that_was_killed_is_replaced(pool: DecoderPool) -> None:
    decode(pool, encoded(noise(), "PNG"))
    for worker in pool.workers._all:
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait(60)
    assert decode(pool, encoded(noise(), "PNG"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_memory_is_limited_and_its_lack_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_BASE_MEMORY", 190 * 1024**2)
    monkeypatch.setattr(pools, "_MEMORY_OF_PIXEL", 0)
    with opened() as pool:
        for image_format in ("PNG", "JPEG"):
            error = refusal(pool, encoded(Image.new("RGB", (5_000, 4_500)), image_format))
            assert (error.code, error.too_large) == ("image_too_large", True)
            assert "its 5000 x 4500 pixels take more memory" in str(error)
        assert len(pool.workers._all) == 1
        assert decode(pool, encoded(noise(), "PNG"))


@pytest.mark.parametrize("size", [(1, 900_000), (1, 3_000_000)])
def test_an_image_that_is_very_narrow_and_high(pool: DecoderPool, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError) as caught:
        pool.decode(encoded(Image.new("1", size), "PNG"), replace(SETTINGS, side=448), NAME, "a", "1")
    error = caught.value
    assert (error.code, error.too_large) == ("image_too_large", True)
    assert f"{size[0]} x {size[1]} pixels" in str(error)


def test_a_worker_is_replaced_before_what_it_leaks_adds_up(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MAX_JOBS", 2)
    data, used = encoded(noise(), "PNG"), set()
    for _ in range(6):
        decode(pool, data)
        used |= {worker._process.pid for worker in pool.workers._all}
    assert len(used) >= 3
    assert len(pool.workers._all) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="trims with the C library of Linux alone")
def test_an_idle_worker_keeps_nothing_of_its_largest_image() -> None:
    with opened() as pool:
        decode(pool, encoded(noise(), "PNG"))
        (worker,) = pool.state["workers"]

        def size() -> int:
            rows = Path(f"/proc/{worker['pid']}/smaps_rollup").read_text().splitlines()
            return next(int(row.split()[1]) for row in rows if row.startswith("Anonymous:")) * 1024

        small = size()
        large = encoded(noise().resize((900, 900)), "JPEG", quality=95)
        for settings in (SETTINGS, replace(SETTINGS, side=448)):
            pool.decode(large, settings, NAME, "a", request="a")
        eventually(lambda: size() < small + 2**20)


@pytest.mark.parametrize(
    "lines",
    [
        ["os.kill(os.getpid(), 9)"],
        ["print('no JSON')"],
        ["print('[]')"],
        ["print('7')"],
        ["print('{}')"],
        ["print(json.dumps({'num_tiles': 10**9}))"],
        ["print(json.dumps({'num_tiles': 'many'}))"],
        ["print(json.dumps({'num_tiles': None}))"],
        ["print(json.dumps({'num_tiles': 2}) + '\\nabc')"],
        ["print('x' * 10**6)"],
    ],
)
def test_what_a_worker_sends_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    path = tmp_path / "worker.py"
    path.write_text("\n".join(["import json, os, sys", "print(flush=True)", "sys.stdin.buffer.readline()", *lines]))
    monkeypatch.setattr(
        starting, "Popen", lambda command, **options: subprocess.Popen([command[0], str(path)], **options)
    )
    with opened() as pool:
        assert "its data crashes the decoder" in str(refusal(pool, encoded(noise(), "PNG")))


def test_a_worker_can_open_neither_files_nor_connections() -> None:
    code = (
        "import os, socket\nfrom ternvl.prompt.decoding.worker import confine, prepare\nprepare()\nconfine(2**31)\n"
        "for use in (socket.socket, os.pipe, lambda: open('/etc/passwd'), lambda: open('new', 'w')):\n"
        "    try:\n        use()\n        print('opened')\n    except OSError as error:\n        print(error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == [str(errno.EMFILE)] * 4


def test_a_worker_imports_little_and_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys\nimport ternvl.prompt.decoding.worker\nprint('torch' in sys.modules, 'httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["False", "False"]
    monkeypatch.setenv("TERNVL_API_KEY", "secret")
    with opened() as pool:
        pool.start()
        (worker,) = pool.workers._all
        if sys.platform == "linux":
            assert b"secret" not in Path(f"/proc/{worker._process.pid}/environ").read_bytes()


def test_a_failure_of_the_worker_itself_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "start", lambda _, *rest: start("ternvl.prompt.no_such_module", *rest))
    with opened() as pool, pytest.raises(RuntimeError, match="ended with status 1"):
        decode(pool, encoded(noise(), "PNG"))


def test_a_closed_pool_decodes_nothing_and_leaves_no_process() -> None:
    pool = DecoderPool(2, LIMITS, max_seconds=60.0)
    pool.start()
    decode(pool, encoded(noise(), "PNG"))
    workers = list(pool.workers._all)
    pool.close()
    assert all(worker._process.poll() is not None for worker in workers)
    with pytest.raises(UnavailableError):
        decode(pool, encoded(noise(), "PNG"))
