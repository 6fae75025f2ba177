"""Damaged images and bombs cost their own requests an error; the server and everybody else's requests go on.

`TERNVL_MUTATIONS` is the number of damaged images, and `TERNVL_BOMBS=all` adds the bombs that take seconds each.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security import bombs
from tests.security.corpus import SAMPLES, mutation, sample
from tests.server.calling import CHAT
from tests.server.fakes import serving, tiny_llm
from tests.server.images import data_uri, png

NUM_MUTATIONS = int(os.environ.get("TERNVL_MUTATIONS", "80"))
HAS_ALL_BOMBS = os.environ.get("TERNVL_BOMBS") == "all"
QUICK = (
    "PNG, 2^31 - 1 x 2^31 - 1", "PNG, 100,000,000 x 1", "PNG, texts of 512 KiB, 1,000 times",
    "PNG, EXIF in a loop", "JPEG, 65,535 x 65,535", "JPEG, 255 ICC segments", "JPEG, EXIF in a loop",
    "TIFF, a tag of 2^32 - 1 values", "TIFF, tiles of 65,535 x 65,535", "TIFF, tiles of 1 x 1 in 10,000 x 10,000",
    "TIFF, 10,000 directories", "TIFF, a directory that follows itself", "GIF, 65,535 x 1,500", "BMP, 2^31 - 1 x 1",
    "BMP, 2^32 - 1 colours",
)  # fmt: skip
KEYS = "[[key]]\nname = 'attacker'\nkey = 'attacker'\n[[key]]\nname = 'other'\nkey = 'other'\n"
FIELD = "messages[0].content[0].image_url.url"


@contextmanager
def clients(**options: Any) -> Iterator[httpx.Client]:
    """A client of a server with two keys."""
    with serving(tiny_llm(), api_keys=KEYS, **options) as url, httpx.Client(base_url=url, timeout=300) as client:
        yield client


def ask(client: httpx.Client, key: str, *images: bytes, path: str = CHAT, **fields: Any) -> httpx.Response:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(each)}} for each in images]
    body = {"messages": [{"role": "user", "content": parts or "hi"}], **fields}
    return client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})


@dataclass
class Others:
    """What somebody else's requests experience meanwhile."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def run(self, client: httpx.Client, stop: threading.Event) -> None:
        pictures = [png(colour) for colour in ("red", "green", "blue")]
        while not stop.is_set():
            images = pictures[len(self.seconds) % 3 :][: len(self.seconds) % 2]
            begin = time.monotonic()
            self.statuses[ask(client, "other", *images, max_tokens=1).status_code] += 1
            self.seconds.append(time.monotonic() - begin)
            stop.wait(0.05)


@contextmanager
def others(client: httpx.Client) -> Iterator[Others]:
    """Ask questions with and without images all the time, as another client."""
    found, stop = Others(), threading.Event()
    thread = threading.Thread(target=found.run, args=(client, stop))
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join(300)


class Memory:
    """The most memory that this process, and so the server, has taken beyond what it had, in bytes."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self._before = self._read("VmRSS")

    @property
    def grown(self) -> int:
        return self._read("VmHWM") - self._before if sys.platform == "linux" else 0

    def _read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def attack(images: Iterable[tuple[str, bytes]], num_threads: int, **options: Any) -> list[tuple[str, int, str]]:
    """Send images to a server, and return the name, status and error of each; check what everybody else sees.

    The server makes their prompts. The model would see only images that are whole.
    """
    with clients(**options) as client:
        assert ask(client, "other", png(), max_tokens=1).status_code == 200
        memory = Memory()
        with others(client) as seen, ThreadPoolExecutor(num_threads) as threads:
            answers = list(
                threads.map(lambda each: (each[0], ask(client, "attacker", each[1], path="/tokenize")), images)
            )
    assert set(seen.statuses) <= {200}
    print(
        f"\n{len(answers)} images; statuses {dict(Counter(answer.status_code for _, answer in answers))}; others asked "
        f"{len(seen.seconds)} times, longest {max(seen.seconds):.2f} s; memory of the server "
        f"{memory.grown / 2**20:+.0f} MiB"
    )
    assert max(seen.seconds) < 30, "somebody else's request was stuck"
    assert memory.grown < 2**30
    return [
        (name, answer.status_code, answer.json()["error"]["message"] if answer.status_code != 200 else "")
        for name, answer in answers
    ]


@pytest.mark.timeout(1_500)  # if there are thousands
def test_damaged_images() -> None:
    whole = [(row[0], sample(index)) for index, row in enumerate(SAMPLES)]
    found = attack([*whole, *(mutation(seed) for seed in range(NUM_MUTATIONS))], 4)
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"} <= {name for name, _ in whole}
    assert [each for each in found[: len(whole)] if each[1] != 200] == []
    assert len(found) == len(whole) + NUM_MUTATIONS
    print(dict(Counter(name for name, *_ in found)))
    for (status, reason), count in Counter(
        (status, error.partition(":")[2]) for _, status, error in found
    ).most_common():
        print(count, status, reason)
    _check(found)


@pytest.mark.timeout(1_500)  # all bombs together
def test_bombs() -> None:
    names = list(bombs.BOMBS) if HAS_ALL_BOMBS else QUICK
    made = [(name, bombs.BOMBS[name]()) for name in names]
    found = attack(made, 4, image_decode_timeout=10.0 if HAS_ALL_BOMBS else 1.0)
    for name, status, error in found:
        print(f"{name}: {status} {error.removeprefix(FIELD)}")
    _check(found)
    refused = {name for name, status, _ in found if status == 413}
    assert {
        name for name in names if name.endswith(("2^31 - 1", "65,535 x 65,535", "00,000 x 1", "- 1 x 1"))
    } - refused <= {"TIFF, tiles of 65,535 x 65,535"}


@pytest.mark.skipif(not HAS_ALL_BOMBS, reason="takes long; TERNVL_BOMBS=all")
def test_bombs_of_one_request() -> None:
    slow = [bombs.BOMBS["JPEG, 400 scans"](), bombs.BOMBS["PNG, one million chunks"]()]
    with clients(image_decode_timeout=1.0) as client, others(client) as seen:
        assert ask(client, "attacker", *slow * 3, path="/tokenize").status_code == 400
    assert set(seen.statuses) <= {200}
    print(f"\nothers asked {len(seen.seconds)} times, longest {max(seen.seconds):.2f} s")


def _check(found: list[tuple[str, int, str]]) -> None:
    """Every image has an answer; errors name it, and no decoder has crashed."""
    assert {status for _, status, _ in found} <= {200, 400, 413}
    errors = [(name, error) for name, status, error in found if status != 200]
    assert [each for each in errors if not each[1].startswith((FIELD, "This model's maximum context"))] == []
    assert [each for each in errors if "crashes" in each[1]] == []
